"""Do volunteers pay? The whole network on emulated devices, every mode beside its alternatives."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.cells import Cell, all_cells, best_cells
from tests.benchmarks.clients import Job, Workload
from tests.benchmarks.emulated import Measured, Say, run
from tests.benchmarks.figures import (
    Check,
    Row,
    Run,
    judge,
    percentile,
    pooled,
    run_of,
    tokens_per_s,
)
from tests.simulator.traces import demo_book

SEED = 7
NOT_NODES = ("", "ngram", "own")
"""What a token's guesser is called where no node had it."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run measures.

    Args:
        num_jobs: requests per serving, each with a prompt of its own; at least one a session.
        num_tokens: of each.
        num_repeats: rounds over all servings, interleaved.
        only: part of the names of the cells to run; empty: all.
        is_whole: of the engine's fixed trees, try the second-best ones too.
    """

    num_jobs: int = 16
    num_tokens: int = 96
    num_repeats: int = 1
    only: str = ""
    is_whole: bool = False

    @property
    def cells(self) -> list[Cell]:
        return all_cells() if self.is_whole else best_cells()


@dataclass(frozen=True, slots=True)
class Figures:
    """Rows are means of runs."""

    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    runs: tuple[Run, ...]


def workload_of(effort: Effort) -> Workload:
    """Every prompt of the recording is a job."""
    prompts = dict.fromkeys(trace.prompt_ids for trace in demo_book().traces)
    jobs = [
        Job(number, prompt_ids, SEED, effort.num_tokens)
        for number, prompt_ids in enumerate(prompts)
    ]
    return Workload(tuple(jobs), effort.num_jobs)


async def measure(
    effort: Effort, known: Sequence[Run], say: Say, keep: Callable[[Figures], None]
) -> Figures:
    """Run all servings of the chosen cells; those that several cells share run once a round.

    `keep` gets what is known so far after every serving: a long run may be stopped, and goes on
    where it was when it is given its runs as `known`.
    """
    known_cells = effort.cells
    cells = [cell for cell in known_cells if effort.only in cell.name]
    workload = workload_of(effort)
    found: dict[str, list[Run]] = {}
    for one in known:
        found.setdefault(one.row.name, []).append(one)
    for round_no in range(effort.num_repeats):
        # Every round goes the other way, so that what drifts falls on both ends alike.
        for cell in cells if round_no % 2 == 0 else cells[::-1]:
            missing = [s for s in cell.servings if len(found.get(s.name, ())) <= round_no]
            async for measured in run(missing, workload, say):
                result = _run(measured)
                found.setdefault(result.row.name, []).append(result)
                say(f"  {result.row.tokens_per_s:.0f} tokens/s, late {result.row.late_share:.2%}")
                keep(_figures(known_cells, found))
    return _figures(known_cells, found)


def _figures(cells: Sequence[Cell], found: Mapping[str, Sequence[Run]]) -> Figures:
    runs = {name: pooled(several) for name, several in found.items()}
    checks = [judge(spec, runs) for cell in cells for spec in cell.checks]
    return Figures(
        tuple(run.row for run in runs.values()),
        tuple(c for c in checks if c is not None),
        tuple(run for several in found.values() for run in several),
    )


def _run(measured: Measured) -> Run:
    serving, served = measured.serving, measured.served
    stretch = serving.network.stretch
    bursts = [(s.num_tokens - s.num_first, s.decode_s / stretch) for s in served]
    rate = tokens_per_s(serving.num_sessions, bursts)
    gaps = [gap for s in served for gap in s.gaps_s]
    num_tokens = sum(s.num_tokens for s in served)
    counters = measured.counters
    by: Counter[str] = Counter()
    for one in served:
        by.update(one.num_by_guesser)
    engine_ms = 1000 * counters.get("specedge_engine_seconds_total", 0.0) / stretch
    row = Row(
        name=serving.name,
        num_sessions=serving.num_sessions,
        num_nodes=serving.network.num_nodes,
        temperature=serving.temperature,
        stretch=stretch,
        num_tokens=num_tokens,
        tokens_per_s=rate,
        itl_ms=1000 * serving.num_sessions / rate,
        p95_gap_ms=1000 * percentile(gaps, 0.95) / stretch,
        tokens_per_engine_ms=counters.get("specedge_committed_tokens_total", 0.0)
        / max(1e-9, engine_ms),
        share_by_nodes=sum(by[name] for name in by if name not in NOT_NODES) / num_tokens,
        share_by_ngram=by["ngram"] / num_tokens,
        late_share=max(measured.engine.late_share, measured.nodes.late_share),
        used_share=measured.engine.used_share,
        drafts=measured.drafts,
    )
    return run_of(row, served, stretch)
