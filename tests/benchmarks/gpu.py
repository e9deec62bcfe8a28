"""`python -m tests.benchmarks.gpu`: what the engine's forwards take on a GPU, against its limits.

Random weights in the shapes of Qwen3-14B and 1.7B, bfloat16, 1,024 tokens cached. A forward cannot
be faster than its weights and its cache are read, nor than its products are computed; both limits
are measured in the same run, on plain tensors. Times are medians on the wall, from the call of the
port to the chosen tokens on the host. `--tiny` tries the script on any machine: its figures say
nothing.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import Qwen3Config, Qwen3ForCausalLM

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import SourceFactor, StepDone, StepEntry, VerificationBatch
from specedge_p2p.lm.ports import ModelInfo, Rows, SamplingParams, TokenIds
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.lm.tree_attention import register_attention
from specedge_p2p.lm.wrapped import WrappedModel
from tests.benchmarks.figures import Check
from tests.benchmarks.machine import this_machine
from tests.benchmarks.table import check_lines
from tests.support.engine import open_session, vertices

REFERENCE_ROUND_MS = 67.0
"""A round of eight in the reference implementation's server on an H200."""
GREEDY = SamplingParams(temperature=0.0)


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


TARGET = Shape("Qwen3-14B", 5120, 17408, 40, 40, 8, 128, 151936, tied=False)
DRAFT = Shape("Qwen3-1.7B", 2048, 6144, 28, 16, 8, 128, 151936, tied=True)
TINY = Shape("tiny", 64, 96, 2, 4, 2, 16, 512, tied=False)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how long is measured."""

    device: torch.device
    dtype: torch.dtype
    num_repeats: int
    context: int
    long_context: int

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


class Subject:
    """A model of random weights with sequences that have rows in its cache."""

    def __init__(self, shape: Shape, bench: Bench, cache_rows: int) -> None:
        config = Qwen3Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=shape.tied,
            max_position_embeddings=40960,
            attn_implementation=register_attention(),
        )
        default = torch.get_default_dtype()
        torch.set_default_dtype(bench.dtype)
        try:
            with bench.device:
                network: Any = Qwen3ForCausalLM(config)
        finally:
            torch.set_default_dtype(default)
        name = str(bench.dtype).removeprefix("torch.")
        info = ModelInfo(shape.name, shape.vocab_size, 40960, (), name, bytes(16))
        self.shape, self.bench = shape, bench
        self.model = TransformersModel(network, info, cache_rows)
        body = sum(p.numel() for p in network.model.layers.parameters())
        self.num_weights = body + network.lm_head.weight.numel()

    def measure(
        self, num_sequences: int, num_rows: int, context: int, limits: Limits
    ) -> ForwardRow:
        """Chains of rows below prefixes of `context` rows."""
        for sequence in range(num_sequences):
            self.model.add_sequence(sequence, GREEDY, bytes(16))
            for first in range(0, context, 1024):
                self.model.choose([chain(sequence, first, min(1024, context - first), causal=True)])
        batch = [chain(n, context, num_rows, causal=False) for n in range(num_sequences)]
        gpu = self.model._gpu
        num_before = 0 if gpu is None else gpu.tally.num_padded_rows

        def drop_tails() -> None:
            for sequence in range(num_sequences):
                self.model.compact(sequence, ())

        time_s = self.bench.median_s(lambda: self.model.choose(batch), drop_tails)
        num_padded = 0 if gpu is None else gpu.tally.num_padded_rows - num_before
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


class TimedModel(WrappedModel):
    """How long forwards took, so that the rest of a step is known."""

    used_s = 0.0

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        begun_s = time.perf_counter()
        chosen = super().choose(batch)
        self.used_s += time.perf_counter() - begun_s
        return chosen


@dataclass(frozen=True, slots=True)
class Round:
    """A step of the engine core: all of it, and what is not the forward."""

    time_ms: float
    gap_ms: float


def measure_round(subject: Subject, num_sessions: int, num_vertices: int) -> Round:
    """Sessions with a fresh tree each in every step, as a node's would be after a miss."""
    bench, model = subject.bench, TimedModel(subject.model)
    core = EngineCore(model, time.monotonic)
    numbers = list(range(1, num_sessions + 1))
    max_tokens = (num_sessions + bench.num_repeats + 2) * (num_vertices + 1)
    lengths = dict.fromkeys(numbers, bench.context)
    for number in numbers:
        # texts of their own, lest a session begin with the pages of another
        prompt = [(7 * i + number) % 509 for i in range(bench.context)]
        core.handle(open_session(number, prompt, max_tokens=max_tokens, ignore_eos=True))
    for _ in numbers:
        _take(core.step(_batch(numbers, bench.context, 0)), lengths)
    times, gaps = [], []
    for tree_no in range(1, bench.num_repeats + 3):
        parents = [max(0, (i - 1) // 2) for i in range(1, num_vertices + 1)]
        for number in numbers:
            tokens = [10 + 2 * i + i % 2 for i in range(num_vertices)]
            core.handle(
                vertices(number, 1, lengths[number], tokens, parents=parents, tree_no=tree_no)
            )
        model.used_s = 0.0
        begun_s = time.perf_counter()
        done = core.step(_batch(numbers, 256, num_vertices))
        times.append(time.perf_counter() - begun_s)
        gaps.append(times[-1] - model.used_s)
        assert done.num_forward_rows == num_sessions * (1 + num_vertices), done.num_forward_rows
        _take(done, lengths)
    return Round(1e3 * statistics.median(times[2:]), 1e3 * statistics.median(gaps[2:]))


def _batch(sessions: Sequence[int], prefill_tokens: int, max_rows: int) -> VerificationBatch:
    return VerificationBatch(
        step_no=1,
        entries=[StepEntry(number, max_rows, [SourceFactor(1, 1.0)]) for number in sessions],
        row_price=0.0,
        ngram_hit_rates=[],
        prefill_tokens=prefill_tokens,
    )


def _take(done: StepDone, lengths: dict[int, int]) -> None:
    for result in done.results:
        lengths[result.session] += len(result.token_ids)


def measure(bench: Bench, target: Shape, draft: Shape) -> tuple[list[ForwardRow], list[Check]]:
    limits = limits_of(bench)
    big = Subject(target, bench, 9 * bench.long_context + 40 * bench.context)
    context = bench.context
    rows = [
        big.measure(1, 33, context, limits),
        big.measure(8, 33, context, limits),
        big.measure(32, 8, context, limits),
        big.measure(8, 33, bench.long_context, limits),
    ]
    whole = measure_round(big, 8, 32)
    del big
    rows.append(Subject(draft, bench, 4 * context).measure(1, 32, context, limits))
    single, eight, many, long, level = rows
    return rows, [
        check("gpu/verify-1x33", single.time_ms / single.weights_ms, 1.75),
        check("gpu/verify-8x33", eight.time_ms / max(eight.weights_ms, eight.compute_ms), 1.8),
        check("gpu/verify-32x8", many.time_ms / max(many.weights_ms, many.compute_ms), 1.8),
        check("gpu/level-1x32", level.time_ms / level.weights_ms, 3.5),
        check("gpu/verify-8x33-16k", long.time_ms / (long.weights_ms + long.cache_ms), 2.5),
        check("gpu/round-8", REFERENCE_ROUND_MS / whole.time_ms, 3.0, at_least=True),
        check("gpu/gap-ms", whole.gap_ms, 1.0),
    ]


def check(name: str, value: float, bound: float, *, at_least: bool = False) -> Check:
    return Check(name, value, bound, value >= bound if at_least else value <= bound)


def main(
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Try the script; figures say nothing.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write to this file.")] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:1; cpu with --tiny.")] = "cuda",
    repeats: Annotated[int, typer.Option(min=1)] = 30,
) -> None:
    if not tiny and not torch.cuda.is_available():
        raise typer.BadParameter("this machine has no CUDA device: only --tiny --device cpu runs")
    where = torch.device(device)
    is_cuda = where.type == "cuda"
    bench = Bench(
        device=where,
        dtype=torch.bfloat16 if is_cuda else torch.float32,
        num_repeats=repeats,
        context=64 if tiny else 1024,
        long_context=128 if tiny else 16384,
    )
    machine = this_machine()
    rows, checks = measure(bench, TINY if tiny else TARGET, TINY if tiny else DRAFT)
    gpu = torch.cuda.get_device_name(where) if is_cuda else "no GPU"
    print(f"{gpu}; {machine}")
    for row in rows:
        print(
            f"{row.name}: {row.time_ms:.2f} ms; floors: weights {row.weights_ms:.2f}, "
            f"cache {row.cache_ms:.2f}, compute {row.compute_ms:.2f}; {row.padded_rows} rows padded"
        )
    for line in check_lines(checks):
        print(line)
    if json_file is not None:
        content = {
            "machine": {**asdict(machine), "gpu": gpu},
            "rows": [asdict(row) for row in rows],
            "checks": [asdict(one) for one in checks],
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
