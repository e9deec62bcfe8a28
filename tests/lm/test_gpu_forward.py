"""What a GPU's forwards share with the plain ones, run by Triton's interpreter on the CPU."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, MistralForCausalLM

from specedge_p2p.lm import gpu_forward as subject
from specedge_p2p.lm.flat_plan import MAX_WORDS, FlatShape
from specedge_p2p.lm.gpu_forward import (
    MAX_GRAPH_BYTES,
    MAX_GRAPH_ROWS,
    MAX_HEAD_DIM,
    Compute,
    GpuForward,
    Record,
    eager_shape,
    graph_shape,
)
from specedge_p2p.lm.ports import ModelInfo, SamplingParams
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.lm.tree_attention import register_attention
from tests.support.parallel_leader import play, tree
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
    assert all(have >= want for have, want in zip(astuple(shape), astuple(least), strict=True))
    assert eager_shape(least) == replace(least, num_words=shape.num_words)
    assert graph_shape(shape) == shape
    if least.num_rows > 16:
        assert shape.num_rows <= 1.42 * least.num_rows
    assert graph_shape(FlatShape(MAX_GRAPH_ROWS + 1, 1, 1, 1, 1)) is None


def test_law7_bounded_few_numbers_of_words_whatever_is_run() -> None:
    words = {eager_shape(FlatShape(1, 1, 1, n, 1)).num_words for n in range(1, MAX_WORDS + 1)}
    assert words == {1, 4, 16, 64}


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
    shapes: list[Compute] = []

    def record(compute: Compute) -> Compute:
        shapes.append(compute)
        return compute

    runner._gpu = forward_of(runner, record if is_captured else None)
    assert play(runner, num_rounds=2) == expected
    tally = runner._gpu.tally
    assert tally.num_graphs == len(shapes)
    assert (tally.num_replays, tally.num_eager) == ((9, 0) if is_captured else (0, 9))
    assert 0 < tally.num_graphs < 9 or not is_captured
    assert (tally.num_padded_rows > 0) == is_captured


def forward_of(runner: TransformersModel, record: Record | None, device: str = "cpu") -> GpuForward:
    [page] = runner._pool.take(1)
    return GpuForward(
        runner._model, runner._cache, runner._heads_per_kv, page, torch.device(device), record
    )


class Memory:
    """A GPU's, of which each graph takes a part and torch keeps another for later."""

    def __init__(self, free: int, graph: int, kept: int = 0) -> None:
        self.free, self.graph, self.kept = free, graph, kept
        self.num_graphs = 0

    def record(self, compute: Compute) -> Compute:
        self.free += self.kept  # as torch.cuda.graph does before it captures
        self.kept = 0
        if self.graph > self.free:
            raise torch.OutOfMemoryError("injected")
        self.free -= self.graph
        self.num_graphs += 1
        return compute

    def empty_cache(self) -> None:
        self.free, self.kept = self.free + self.kept, 0

    def free_bytes(self, device: torch.device) -> int:
        assert device == torch.device("cpu")
        return self.free


def forward_in(
    memory: Memory, runner: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> GpuForward:
    """Forwards that compute nothing: what is captured is looked at, not what comes out."""
    _need_interpreter()

    def nothing(self: GpuForward, slot: Any) -> torch.Tensor:  # noqa: ANN401
        return torch.zeros(slot.shape.num_outputs, runner.info.vocab_size)

    monkeypatch.setattr(GpuForward, "_compute", nothing)
    monkeypatch.setattr(subject, "free_bytes", memory.free_bytes)
    return forward_of(runner, memory.record)


@pytest.mark.parametrize(
    ("free", "graph"), [(1 << 40, MAX_GRAPH_BYTES // 2), (6_000, 1_000)], ids=["2 GiB", "a third"]
)
def test_law7_bounded_graphs_take_a_bounded_part_of_what_is_left(
    free: int, graph: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(free, graph)
    runner = tiny_runner(dtype=torch.float32)
    gpu = runner._gpu = forward_in(memory, runner, monkeypatch)
    play(runner, num_rounds=2)
    assert memory.num_graphs == 3  # the one that passes the cap is the last
    assert gpu.tally.num_eager > 0
    assert gpu.tally.num_replays >= 3


def test_an_eager_forward_compiles_no_kernel_for_its_own_number_of_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = tiny_runner(dtype=torch.float32)
    gpu = runner._gpu = forward_in(Memory(0, 1), runner, monkeypatch)
    shapes: list[FlatShape] = []

    def compute(self: GpuForward, slot: Any) -> torch.Tensor:  # noqa: ANN401
        shapes.append(slot.shape)
        return torch.zeros(slot.shape.num_outputs, runner.info.vocab_size)

    monkeypatch.setattr(GpuForward, "_compute", compute)
    runner.add_sequence(0, SamplingParams(0.0), bytes(16))
    [tokens] = runner.choose([tree(0, np.arange(3, 43), 0)])
    assert len(tokens) == 40
    assert gpu.tally.num_eager == 1
    assert [(shape.num_rows, shape.num_words) for shape in shapes] == [(40, 4)]


def test_what_torch_keeps_for_later_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture gives it back: read before and after, it would hide what the graph took."""
    memory = Memory(free=1_000, graph=300, kept=5_000)
    monkeypatch.setattr(torch.cuda, "empty_cache", memory.empty_cache)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory.free, 1 << 40))
    gpu = torch.device("cuda:1")
    before = subject.free_bytes(gpu)
    memory.record(lambda: torch.zeros(1))
    assert before - subject.free_bytes(gpu) == 300
    assert subject.free_bytes(torch.device("cpu")) == 0


def test_graphs_are_given_up_when_there_is_no_memory_for_one_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = Memory(10_000, 1_000)
    runner = tiny_runner(dtype=torch.float32)
    gpu = runner._gpu = forward_in(memory, runner, monkeypatch)
    memory.free = 2_500  # somebody else has taken the rest
    play(runner, num_rounds=2)
    assert memory.num_graphs == 2
    assert not gpu._slots
    assert gpu.tally.num_replays < gpu.tally.num_eager


def test_a_forward_runs_on_its_own_device_whatever_the_thread_s_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _need_interpreter()
    entered: list[torch.device] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield
        entered.pop()

    def run(self: GpuForward, entries: object) -> torch.Tensor:
        return torch.tensor([device.index for device in entered])

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(subject, "free_bytes", lambda device: 0)
    monkeypatch.setattr(GpuForward, "_logits", run)
    gpu = forward_of(tiny_runner(dtype=torch.float32), None, "cuda:1")
    assert gpu.logits([]).tolist() == [1]
    assert not entered


ROPE: dict[str, Any] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("rope", "is_alone", "dim", "expected"),
    [
        (None, True, MAX_HEAD_DIM, "graphs"),
        (None, False, 64, "eager"),
        (ROPE, True, 64, "eager"),
        (None, True, 2 * MAX_HEAD_DIM, "none"),
    ],
)
def test_which_models_are_captured(
    rope: dict[str, Any] | None,
    is_alone: bool,
    dim: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where rotary positions turn with the length, transformers reads it on the host."""
    config = LlamaConfig(rope_parameters=rope)
    weight = SimpleNamespace(device=torch.device("cuda:0"), dtype=torch.bfloat16)
    model: Any = SimpleNamespace(parameters=lambda: iter([weight]), config=config)
    rows = torch.zeros(1, 1, dim)
    cache: Any = SimpleNamespace(of_layer=lambda layer: (rows, rows))
    monkeypatch.setattr(subject, "find_spec", lambda name: True)
    monkeypatch.setattr(subject, "CudaRecorder", lambda: "graphs")
    monkeypatch.setattr(subject, "GpuForward", lambda *args: args[-1] or "eager")
    found: Any = subject.gpu_forward(model, cache, 4, 0, is_alone=is_alone)
    assert (found or "none") == expected


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
