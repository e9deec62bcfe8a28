"""Every model family, through loader and paged attention, gives transformers' own tokens."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, LlamaConfig

from specedge_p2p.lm.families import longest_context, turns_with_length
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import ModelError, Rows, SamplingParams
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.noise import NoiseKey
from tests.support.near_ties import Logits, assert_possible, error_bound
from tests.support.shadows import GREEDY, check_any_batching
from tests.support.tiny_models import (
    FAMILIES,
    MIXTURES,
    VOCAB_SIZE,
    WINDOW,
    plain_twin,
    save_tiny,
)

FEW = settings(max_examples=settings().max_examples // 4)
"""There are many families; together they see enough batches."""
PROMPT = np.random.default_rng(0).integers(2, VOCAB_SIZE, 120).astype(np.int32)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    model: TransformersModel
    logits: Logits
    dtype: str


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in folders:
            folders[family] = save_tiny(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return get


def subject(folder: Path, dtype: str) -> Subject:
    torch.set_num_threads(1)
    twin = plain_twin(folder, DTYPES[dtype])
    known: dict[tuple[int, ...], np.ndarray] = {}

    @torch.inference_mode()
    def logits(token_ids: list[int]) -> np.ndarray:
        text = tuple(token_ids)
        if text not in known:
            output = twin(torch.tensor([token_ids]), use_cache=False)
            known[text] = np.asarray(output.logits[0, -1].numpy())
        return known[text]

    return Subject(load_model(str(folder), dtype=dtype, cache_rows=4096), logits, dtype)


@pytest.fixture(scope="module", params=[*FAMILIES, *MIXTURES])
def exact(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Subject:
    return subject(folder_of(request.param), "float64")


@pytest.fixture(
    scope="module",
    params=[(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")],
    ids="-".join,
)
def rounded(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Subject:
    family, dtype = request.param
    return subject(folder_of(family), dtype)


def check_batches(subject: Subject, data: st.DataObject) -> None:
    def check(token: int, text: list[int], sampling: SamplingParams, key: NoiseKey) -> None:
        assert_possible(token, subject.logits(text), sampling, key, len(text), subject.dtype)

    check_any_batching(subject.model, check, data)


@FEW
@given(data=st.data())
def test_law1_output_of_every_family_is_exact_in_float64(
    exact: Subject, data: st.DataObject
) -> None:
    check_batches(exact, data)


@FEW
@given(data=st.data())
def test_law1_output_of_every_family_up_to_near_ties(rounded: Subject, data: st.DataObject) -> None:
    check_batches(rounded, data)


def causal(sequence: int, start: int, stop: int) -> Rows:
    positions = np.arange(start, stop, dtype=np.int32)
    return Rows(sequence, PROMPT[start:stop], positions, None, stop - start)


def ragged_logits(model: TransformersModel) -> np.ndarray:
    """After 110 to 120 tokens, twice after 7, and after 1 to 9, in one forward."""
    for sequence in range(3):
        model.drop_sequence(sequence)
        model.add_sequence(sequence, GREEDY, bytes(16))
    with torch.inference_mode():
        model._forward([causal(0, 0, 109), causal(1, 0, 5)])
        branches = np.array([[0b1], [0b11], [0b101]], np.uint64)
        tree = Rows(1, PROMPT[[5, 6, 6]], np.array([5, 6, 6], np.int32), branches, 2)
        logits = model._forward([causal(0, 109, 120), tree, causal(2, 0, 9)])
    return np.asarray(logits.double().cpu().numpy())


def check_logits(subject: Subject) -> None:
    ends = [*range(110, 121), 7, 7, *range(1, 10)]
    for got, end in zip(ragged_logits(subject.model), ends, strict=True):
        expected = subject.logits(PROMPT[:end].tolist())
        error = got - expected
        assert np.ptp(error) <= max(1e-9, error_bound(expected, subject.dtype))


def test_logits_of_every_family_equal_the_unmodified_model(exact: Subject) -> None:
    check_logits(exact)


def test_logits_of_every_family_err_by_no_more_than_the_bound(rounded: Subject) -> None:
    check_logits(rounded)


@pytest.mark.parametrize("window", [WINDOW - 1, WINDOW + 1])
@pytest.mark.parametrize("family", ["mistral-window", "gemma3", "qwen2-windows"])
def test_another_window_would_show(
    folder_of: Callable[[str], Path], family: str, window: int
) -> None:
    right = subject(folder_of(family), "float64")
    model: Any = right.model._model
    for layer in model.modules():
        if getattr(layer, "sliding_window", None):
            layer.sliding_window = window
    model.config.sliding_window = window
    with pytest.raises(AssertionError):
        check_logits(right)


def test_beyond_what_longrope_was_trained_with_a_context_ends(
    folder_of: Callable[[str], Path],
) -> None:
    """There one long text in a batch would turn the positions of all others."""
    model = load_model(str(folder_of("phi3-longrope-window")), cache_rows=16)
    assert model.info.max_context == 128


def test_which_rotary_positions_turn_with_the_length() -> None:
    """At once for all layers, or for a kind of them."""
    found = {family for family, config in FAMILIES.items() if turns_with_length(config())}
    assert found == {"phi3-longrope-window"}
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert turns_with_length(LlamaConfig(rope_parameters=dynamic))
    by_kind = LlamaConfig()
    by_kind.rope_parameters = {"full_attention": dynamic, "sliding_attention": {}}
    assert turns_with_length(by_kind)


def test_a_config_without_a_longest_context_is_refused() -> None:
    with pytest.raises(ModelError, match="states no longest context"):
        longest_context("bloom", BloomConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
            "chunked_attention",
        ),
        ({"layer_types": ["linear_attention"] * 3}, "linear_attention"),
        ({"sliding_window": 4}, "sliding window is meant"),
        ({"model_type": "gptj"}, "attention of gptj is not supported"),
    ],
)
def test_attention_of_another_kind_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    for path in folder_of("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path))
