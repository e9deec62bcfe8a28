"""`python -m tests.benchmarks.engine_memory`: what a small cache costs and what sharing saves.

The demo target in float64, so that tokens can be compared one by one: sessions of mixed length on
a quarter of the cache that they want against one that holds them all, and prompts with a beginning
in common against the same prompts under different keys.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import OpenSession
from coordinator.engine.settings import EngineLimits
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import SamplingParams
from tests.benchmarks.figures import Check
from tests.benchmarks.machine import this_machine
from tests.support.engine import GREEDY, Run, batch, open_session

WARM = SamplingParams(temperature=0.8)
PREFILL_TOKENS = 256
NUM_COMMON = 512
LEAST_TOKEN = 4
"""Of the demo pair's vocabulary those below it are special."""


@dataclass(frozen=True, slots=True)
class MemoryEffort:
    """How many sessions: of mixed length, and with a beginning in common."""

    num_mixed: int = 200
    num_common: int = 50


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """One serving.

    Args:
        time_ms: processor time per token that was generated.
        against: the row that it is compared with, "" for none.
        ratio: time over that row's time.
        num_prefill_rows: rows forwarded to prefill prompts, and again what was preempted.
        num_reused_rows: rows that were shared instead.
        num_preempted: times that a session's rows had to give way.
    """

    name: str
    time_ms: float
    against: str
    ratio: float
    cache_rows: int
    num_prefill_rows: int
    num_reused_rows: int
    num_preempted: int


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    rows: tuple[MemoryRow, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class _Served:
    tokens: dict[int, list[int]]
    row: MemoryRow


def measure_memory(effort: MemoryEffort, model: str = "demo-target") -> MemoryFigures:
    torch.set_num_threads(1)
    quarter, small_cache = _quarter_cache(effort.num_mixed, model)
    shared, common = _shared_prefix(effort.num_common, model)
    return MemoryFigures((*quarter, *shared), (small_cache, common))


def _quarter_cache(num_sessions: int, model: str) -> tuple[list[MemoryRow], Check]:
    sessions = _mixed_sessions(num_sessions)
    num_wanted = sum(len(s.token_ids) + s.max_tokens for s in sessions)
    whole = _serve("sessions of mixed length, a cache for all", sessions, 2 * num_wanted, model)
    quarter = _serve("the same, a quarter of it", sessions, num_wanted // 4, model, whole.row)
    num_right = sum(quarter.tokens[s.session] == whole.tokens[s.session] for s in sessions)
    note = (
        f"sessions of {num_sessions} that finish with the tokens of a cache for all; "
        f"{quarter.row.num_preempted} preemptions"
    )
    check = Check(
        "memory/quarter-cache", num_right, num_sessions, num_right >= num_sessions, note=note
    )
    return [whole.row, quarter.row], check


def _shared_prefix(num_sessions: int, model: str) -> tuple[list[MemoryRow], Check]:
    alone = _common_sessions(num_sessions, are_of_one_key=False)
    num_wanted = sum(len(s.token_ids) + s.max_tokens for s in alone)
    apart = _serve("512 common tokens, each under its own key", alone, 2 * num_wanted, model)
    sessions = _common_sessions(num_sessions, are_of_one_key=True)
    shared = _serve("the same under one key", sessions, 2 * num_wanted, model, apart.row)
    least = NUM_COMMON + sum(len(s.token_ids) - NUM_COMMON for s in sessions)
    value = shared.row.num_prefill_rows / least
    is_same = shared.tokens == apart.tokens
    note = "rows prefilled, over those of one common beginning and each session's own"
    check = Check("memory/shared-prefix", value, 1.0, value <= 1.0 and is_same, note=note)
    return [apart.row, shared.row], check


def _mixed_sessions(num_sessions: int) -> list[OpenSession]:
    random = Random(1)
    return [
        open_session(
            number,
            _prompt(random, random.choice([8, 24, 64, 160])),
            max_tokens=random.choice([4, 16, 64, 300]),
            sampling=(GREEDY, WARM)[number % 2],
            seed=number,
            ignore_eos=True,
            prefix_salt=str(number),
        )
        for number in range(num_sessions)
    ]


def _common_sessions(num_sessions: int, *, are_of_one_key: bool) -> list[OpenSession]:
    random = Random(2)
    common = _prompt(random, NUM_COMMON)
    return [
        open_session(
            number,
            common + _prompt(random, 1 + number % 24)[1:] + [LEAST_TOKEN + number],
            max_tokens=4,
            ignore_eos=True,
            prefix_salt="" if are_of_one_key else str(number),
        )
        for number in range(num_sessions)
    ]


def _prompt(random: Random, num_tokens: int) -> list[int]:
    return [0, *(random.randrange(LEAST_TOKEN, 4096) for _ in range(num_tokens - 1))]


def _serve(
    name: str,
    sessions: Sequence[OpenSession],
    cache_rows: int,
    model: str,
    against: MemoryRow | None = None,
) -> _Served:
    """All sessions to their end, in steps as a coordinator without volunteers would plan them."""
    target = load_model(model, dtype="float64", device="cpu", cache_rows=cache_rows)
    limits = EngineLimits(max_sessions=len(sessions))
    run = Run(EngineCore(target, time.monotonic, limits))
    for session in sessions:
        run.open(session)
    num_prefilled = num_reused = num_preempted = 0
    begun_s = time.thread_time()
    while run.live():
        done = run.step(batch(run.live(), max_rows=0, prefill_tokens=PREFILL_TOKENS))
        num_prefilled += done.num_prefill_rows
        num_reused += done.num_reused_rows
        num_preempted += len(done.preempted)
        for failure in run.core.take_failures():
            run.finish[failure.session] = failure.code
    num_tokens = sum(len(run.tokens[s.session]) - len(s.token_ids) for s in sessions)
    time_ms = (time.thread_time() - begun_s) * 1000 / num_tokens
    row = MemoryRow(
        name,
        time_ms,
        "" if against is None else against.name,
        0.0 if against is None else time_ms / against.time_ms,
        target.cache.num_rows,
        num_prefilled,
        num_reused,
        num_preempted,
    )
    return _Served(run.tokens, row)


def memory_table(rows: Sequence[MemoryRow]) -> Table:
    table = Table(
        *("serving", "ms per token", "time ratio", "cache rows", "prefilled", "shared"),
        "preempted",
        box=box.SIMPLE,
    )
    for row in rows:
        table.add_row(
            row.name,
            f"{row.time_ms:.2f}",
            f"{row.ratio:.2f}" if row.against else "",
            *map(str, (row.cache_rows, row.num_prefill_rows, row.num_reused_rows)),
            str(row.num_preempted),
        )
    return table


def main() -> None:
    figures = measure_memory(MemoryEffort())
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(str(this_machine()))
    console.print(memory_table(figures.rows))
    for check in figures.checks:
        console.print(json.dumps(asdict(check)))


if __name__ == "__main__":
    main()
