"""`python -m tests.benchmarks.gpu`: what the engine's forwards take on a GPU, against its limits.

Random weights in the shapes of Qwen3-14B and 1.7B, bfloat16, 1,024 tokens cached. A forward cannot
be faster than its weights and its cache are read, nor than its products are computed; both limits
are measured in the same run, on plain tensors. Times are medians on the wall, from the call of the
port to the chosen tokens on the host. `--tiny` tries the script on any machine: its figures say
nothing.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from specedge_p2p.lm.gpu_forward import ForwardTally
from tests.benchmarks.figures import Check
from tests.benchmarks.gpu_round import measure_round
from tests.benchmarks.gpu_subject import Bench, ForwardRow, Shape, Subject, limits_of
from tests.benchmarks.gpu_ties import Ties, measure_ties
from tests.benchmarks.machine import this_machine
from tests.benchmarks.table import check_lines

REFERENCE_ROUND_MS = 67.0
"""A round of eight in the reference implementation's server on an H200."""
NEEDED_BYTES = 72 << 30
"""Of the target, its cache and what the limits are measured with."""
BRANCH_WIDTH = 8
"""Of a draft level."""

TARGET = Shape("Qwen3-14B", 5120, 17408, 40, 40, 8, 128, 151936, tied=False)
DRAFT = Shape("Qwen3-1.7B", 2048, 6144, 28, 16, 8, 128, 151936, tied=True)
SMALL = Shape("four layers", 1024, 3072, 4, 16, 8, 128, 32768, tied=False)
TINY = Shape("tiny", 64, 96, 2, 4, 2, 16, 512, tied=False)


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """What was measured; `tallies` by model."""

    rows: list[ForwardRow]
    checks: list[Check]
    tallies: dict[str, ForwardTally]
    ties: Ties


def bench_on(device: torch.device, num_repeats: int, *, tiny: bool = False) -> Bench:
    return Bench(
        device=device,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        num_repeats=num_repeats,
        context=64 if tiny else 1024,
        long_context=128 if tiny else 16384,
    )


def has_room(device: torch.device) -> bool:
    return bool(torch.cuda.mem_get_info(device)[0] >= NEEDED_BYTES)


def measure(bench: Bench, target: Shape, draft: Shape, tied: Shape) -> GpuFigures:
    """`tied` is the model whose tokens are compared."""
    limits = limits_of(bench)
    ties = measure_ties(bench, tied)
    big = Subject(target, bench, 9 * bench.long_context + 40 * bench.context)
    context = bench.context
    rows = [
        big.measure(1, 33, context, limits),
        big.measure(8, 33, context, limits),
        big.measure(32, 8, context, limits),
        big.measure(8, 33, bench.long_context, limits),
    ]
    whole = measure_round(big, 8, 32)
    tallies = {f"target {target.name}": big.tally}
    del big
    small = Subject(draft, bench, 4 * context)
    rows.append(small.measure(1, 32, context, limits, BRANCH_WIDTH))
    tallies[f"draft {draft.name}"] = small.tally
    single, eight, many, long, level = rows
    checks = [
        check("gpu/verify-1x33", single.time_ms / single.weights_ms, 1.75),
        check("gpu/verify-8x33", eight.time_ms / max(eight.weights_ms, eight.compute_ms), 1.8),
        check("gpu/verify-32x8", many.time_ms / max(many.weights_ms, many.compute_ms), 1.8),
        check("gpu/level-1x32", level.time_ms / level.weights_ms, 3.5),
        check("gpu/verify-8x33-16k", long.time_ms / (long.weights_ms + long.cache_ms), 2.5),
        check("gpu/round-8", REFERENCE_ROUND_MS / whole.time_ms, 3.0, at_least=True),
        check("gpu/gap-ms", whole.gap_ms, 1.0),
        check("gpu/impossible-tokens", ties.num_impossible, 0.0),
    ]
    return GpuFigures(rows, checks, tallies, ties)


def check(name: str, value: float, bound: float, *, at_least: bool = False) -> Check:
    return Check(name, value, bound, value >= bound if at_least else value <= bound)


def lines(figures: GpuFigures) -> list[str]:
    """The figures for people."""
    text = [
        f"{row.name}: {row.time_ms:.2f} ms; floors: weights {row.weights_ms:.2f}, "
        f"cache {row.cache_ms:.2f}, compute {row.compute_ms:.2f}; {row.padded_rows} rows padded"
        for row in figures.rows
    ]
    text += [
        f"{name}: {tally.num_graphs} graphs, {tally.num_replays} replays, {tally.num_eager} eager; "
        f"{tally.num_padded_rows} rows padded beside {tally.num_rows}"
        for name, tally in figures.tallies.items()
    ]
    ties = figures.ties
    text.append(
        f"replayed against eager: {ties.num_different} of {ties.num_tokens} tokens differ, "
        f"{ties.num_impossible} are beyond rounding"
    )
    return [*text, *check_lines(figures.checks)]


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
    bench = bench_on(where, repeats, tiny=tiny)
    machine = this_machine()
    shapes = (TINY, TINY, TINY) if tiny else (TARGET, DRAFT, SMALL)
    figures = measure(bench, *shapes)
    gpu = torch.cuda.get_device_name(where) if where.type == "cuda" else "no GPU"
    print(f"{gpu}; {machine}")
    print("\n".join(lines(figures)))
    if json_file is not None:
        content = {"machine": {**asdict(machine), "gpu": gpu}, **asdict(figures)}
        json_file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
