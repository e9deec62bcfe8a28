"""What a GPU's forwards share with the plain ones, run by Triton's interpreter on the CPU."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from specedge_p2p.lm.flat_plan import MAX_WORDS, FlatShape
from specedge_p2p.lm.gpu_forward import MAX_GRAPH_ROWS, Compute, GpuForward, graph_shape
from specedge_p2p.lm.ports import ModelInfo
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.lm.tree_attention import register_attention
from tests.support.parallel_leader import play
from tests.support.tiny_llama import tiny_runner

SHAPES = st.builds(
    FlatShape,
    num_rows=st.integers(1, MAX_GRAPH_ROWS),
    num_tiles=st.integers(1, MAX_GRAPH_ROWS),
    num_outputs=st.integers(0, MAX_GRAPH_ROWS),
    num_words=st.integers(1, MAX_WORDS),
    num_pages=st.integers(1, 100_000),
)


@given(SHAPES)
def test_law7_bounded_few_shapes_hold_every_step(least: FlatShape) -> None:
    shape = graph_shape(least)
    assert shape is not None
    assert shape.holds(least)
    assert graph_shape(shape) == shape
    if least.num_rows > 16:
        assert shape.num_rows <= 1.42 * least.num_rows
    assert graph_shape(FlatShape(MAX_GRAPH_ROWS + 1, 1, 1, 1, 1)) is None


def test_law7_bounded_rows_have_few_shapes() -> None:
    shapes = {graph_shape(FlatShape(n, 1, 1, 1, 1)) for n in range(1, MAX_GRAPH_ROWS + 1)}
    assert len(shapes) <= 27


@pytest.mark.parametrize("is_captured", [True, False])
def test_padded_steps_give_the_tokens_of_plain_ones(
    is_captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffers of a shape are used again with what the last step left in them."""
    _need_interpreter()
    kernel = importlib.import_module("specedge_p2p.lm.triton_attention")
    monkeypatch.setattr(kernel, "NUM_PROGRAMS", 2)  # the interpreter runs them one by one
    if torch.cuda.is_available():
        pytest.skip("on a GPU `tests/benchmarks/gpu.py` does it with real graphs")
    expected = play(tiny_runner(dtype=torch.float32), num_rounds=2)
    runner = tiny_runner(dtype=torch.float32)
    [page] = runner._pool.take(1)
    shapes: list[Compute] = []

    def record(compute: Compute) -> Compute:
        shapes.append(compute)
        return compute

    runner._gpu = GpuForward(
        runner._model,
        runner._cache,
        runner._heads_per_kv,
        page,
        torch.device("cpu"),
        record if is_captured else None,
    )
    assert play(runner, num_rounds=2) == expected
    tally = runner._gpu.tally
    assert tally.num_graphs == len(shapes)
    assert (tally.num_replays, tally.num_eager) == ((9, 0) if is_captured else (0, 9))
    assert 0 < tally.num_graphs < 9 or not is_captured
    assert (tally.num_padded_rows > 0) == is_captured


def test_a_model_on_the_cpu_needs_no_triton() -> None:
    assert tiny_runner()._gpu is None
    assert tiny_runner(dtype=torch.float32)._gpu is None


def test_models_with_sliding_windows_do_without_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(
        "specedge_p2p.lm.runner.gpu_forward", lambda model, *_, **__: asked.append(_window(model))
    )
    info = ModelInfo("tiny", 62, 64, (), "float32", bytes(16))
    for window in (16, None):
        config = MistralConfig(
            vocab_size=62,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            sliding_window=window,
            attn_implementation=register_attention(),
        )
        TransformersModel(MistralForCausalLM(config), info, 64)
    assert asked == [None]


def _window(model: Any) -> int | None:  # noqa: ANN401
    window: int | None = model.config.sliding_window
    return window


def _need_interpreter() -> None:
    try:
        if version("triton") < "3.9":
            pytest.skip("this triton's interpreter knows no numpy 2.4")
    except PackageNotFoundError:
        pytest.skip("triton is not installed")
