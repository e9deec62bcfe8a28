"""Quantized weights: other weights, the same law."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import ModelError, SamplingParams
from specedge_p2p.lm.quantization import Quantize
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.noise import NoiseKey
from tests.support.near_ties import assert_possible
from tests.support.shadows import check_any_batching
from tests.support.tiny_models import plain_twin, save_tiny

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)


def dequantized_twin(folder: Path, model: Any) -> Any:  # noqa: ANN401
    """The unmodified model in float64, with the very weights that the quantized ones stand for."""
    twin = plain_twin(folder, torch.float32)
    plain = dict(twin.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and type(module.weight.data) is not torch.Tensor:
            plain[name].weight.data = module.weight.dequantize().double()
    return twin


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny("qwen3-tied", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantized(request: pytest.FixtureRequest, folder: Path) -> TransformersModel:
    quantize: Quantize = request.param
    return load_model(
        str(folder), dtype="float32", device="cpu", quantize=quantize, cache_rows=4096
    )


@needs_torchao
@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_law1_output_of_quantized_weights(
    folder: Path, quantized: TransformersModel, data: st.DataObject
) -> None:
    twin = dequantized_twin(folder, quantized._model)

    @torch.inference_mode()
    def check(token: int, text: list[int], sampling: SamplingParams, key: NoiseKey) -> None:
        logits = np.asarray(twin(torch.tensor([text]), use_cache=False).logits[0, -1].numpy())
        assert_possible(token, logits, sampling, key, len(text), "float32")

    check_any_batching(quantized, check, data)


@needs_torchao
def test_inner_weights_are_quantized_and_no_others(
    folder: Path, quantized: TransformersModel
) -> None:
    model: Any = quantized._model
    inner = model.model.layers[1].mlp.up_proj.weight
    assert type(inner.data) is not torch.Tensor
    assert type(model.lm_head.weight.data) is type(model.model.embed_tokens.weight.data)
    assert type(model.lm_head.weight.data) is torch.Tensor
    # keeps its layers as they are
    plain = load_model(str(folder), dtype="float64", device="cpu", cache_rows=16)
    twin: Any = plain._model
    error = (inner.dequantize() - twin.model.layers[1].mlp.up_proj.weight).abs()
    assert 0 < error.max() < 0.2
    assert plain.info.fingerprint != quantized.info.fingerprint


@needs_torchao
def test_what_cannot_be_quantized_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="do not compute in float64"):
        load_model(str(folder), dtype="float64", quantize="int8")
    wrong: Any = "int3"
    with pytest.raises(ModelError, match="give one of none, int8, int4"):
        load_model(str(folder), quantize=wrong)


def test_a_missing_library_is_said_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install '\.\[quantize\]'"):
        load_model("demo-draft", quantize="int8")
