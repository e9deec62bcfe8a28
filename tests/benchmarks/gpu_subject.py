"""What the GPU's benchmark measures: a model of random weights, and what its device can do."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from specedge_p2p.lm.gpu_forward import ForwardTally
from specedge_p2p.lm.ports import ModelInfo, Rows, SamplingParams
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.lm.tree_attention import register_attention

GREEDY = SamplingParams(temperature=0.0)
MAX_CONTEXT = 40960


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes and how it is measured."""

    name: str
    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how long is measured."""

    device: torch.device
    dtype: torch.dtype
    num_repeats: int
    context: int
    long_context: int

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median_s(self, run: Callable[[], object], prepare: Callable[[], object] = int) -> float:
        """Of `run` on the wall, after two that warm up; `prepare` is not timed."""
        times = []
        for _ in range(self.num_repeats + 2):
            prepare()
            self.wait()
            begun_s = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - begun_s)
        return statistics.median(times[2:])


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device does at best."""

    read_bytes_per_s: float
    flops: float


@dataclass(frozen=True, slots=True)
class ForwardRow:
    """One kind of forward: how long, and the floors of reading and computing."""

    name: str
    time_ms: float
    weights_ms: float
    cache_ms: float
    compute_ms: float
    padded_rows: int


def limits_of(bench: Bench) -> Limits:
    """Reading: the sum of a tensor larger than any cache. Computing: a large matrix product."""
    is_cuda = bench.device.type == "cuda"
    elements, side = (1 << 31, 8192) if is_cuda else (1 << 22, 256)
    data = torch.zeros(elements, dtype=bench.dtype, device=bench.device)
    read_s = bench.median_s(lambda: data.view(1024, -1).amax(1))
    square = torch.randn(side, side, device=bench.device).to(bench.dtype)
    product_s = bench.median_s(lambda: square @ square)
    return Limits(data.nbytes / read_s, 2 * side**3 / product_s)


def network_of(shape: Shape, bench: Bench) -> Any:  # noqa: ANN401
    """A model of these sizes with random weights, made where it is run."""
    config = Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=MAX_CONTEXT,
        attn_implementation=register_attention(),
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(bench.dtype)
    try:
        with bench.device:
            return Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(default)


def runner_of(network: Any, shape: Shape, dtype: str, cache_rows: int) -> TransformersModel:  # noqa: ANN401
    info = ModelInfo(shape.name, shape.vocab_size, MAX_CONTEXT, (), dtype, bytes(16))
    return TransformersModel(network, info, cache_rows)


class Subject:
    """A model of random weights with sequences that have rows in its cache."""

    def __init__(self, shape: Shape, bench: Bench, cache_rows: int) -> None:
        network = network_of(shape, bench)
        self.shape, self.bench = shape, bench
        self.model = runner_of(network, shape, bench.dtype_name, cache_rows)
        body = sum(p.numel() for p in network.model.layers.parameters())
        self.num_weights = body + network.lm_head.weight.numel()

    @property
    def tally(self) -> ForwardTally:
        """So far; all zero where the model is run without `GpuForward`."""
        gpu = self.model._gpu
        return ForwardTally() if gpu is None else replace(gpu.tally)

    def measure(
        self,
        num_sequences: int,
        num_rows: int,
        context: int,
        limits: Limits,
        branch_width: int | None = None,
    ) -> ForwardRow:
        """Chains of rows below prefixes of `context` rows; a draft level with `branch_width`."""
        for sequence in range(num_sequences):
            self.model.add_sequence(sequence, GREEDY, bytes(16))
            for first in range(0, context, 1024):
                self.model.choose([chain(sequence, first, min(1024, context - first), causal=True)])
        batch = [chain(n, context, num_rows, causal=False) for n in range(num_sequences)]
        num_before = self.tally.num_padded_rows

        def drop_tails() -> None:
            for sequence in range(num_sequences):
                self.model.compact(sequence, ())

        def run() -> None:
            if branch_width is None:
                self.model.choose(batch)
            else:
                self.model.expand(batch, branch_width)

        time_s = self.bench.median_s(run, drop_tails)
        num_padded = self.tally.num_padded_rows - num_before
        for sequence in range(num_sequences):
            self.model.drop_sequence(sequence)
        size = self.bench.dtype.itemsize
        shape = self.shape
        row_bytes = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * size
        num_cached = num_sequences * (context + num_rows)
        flops = 2 * self.num_weights * num_sequences * num_rows
        return ForwardRow(
            f"{shape.name} {num_sequences}x{num_rows}, {context} cached",
            1e3 * time_s,
            1e3 * self.num_weights * size / limits.read_bytes_per_s,
            1e3 * num_cached * row_bytes / limits.read_bytes_per_s,
            1e3 * flops / limits.flops,
            num_padded // (self.bench.num_repeats + 2),
        )


def chain(sequence: int, first: int, num_rows: int, *, causal: bool) -> Rows:
    """Rows of a prefix, or of a tail in which each sees all before it."""
    positions = np.arange(first, first + num_rows, dtype=np.int32)
    ids = (positions * 7 + sequence) % 509
    visible = None
    if not causal:
        masks = [(1 << (i + 1)) - 1 for i in range(num_rows)]
        visible = np.array([[m & (2**64 - 1), m >> 64] for m in masks], np.uint64)
    return Rows(sequence, ids.astype(np.int32), positions, visible, 1 if causal else num_rows)
