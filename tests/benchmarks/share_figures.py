"""What `share.py` measured, as shares of a step, and the bounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.figures import Check
from tests.benchmarks.gap import Gap

NUM_SESSIONS = 24
ROUNDS_BOUND, GAP_BOUND_MS, PROCESS_BOUND = 0.10, 1.0, 0.60
ROUNDS = ("plan", "commit", "verdicts")
"""Tasks whose time together is bounded."""


@dataclass(frozen=True, slots=True)
class ShareRow:
    """One measure at one load.

    Args:
        cpu_ms: processor time per engine step.
        step_ms: the engine step's own time on the emulated device.
        num_steps: how many were measured.
        wall_ms: real time per step; 0 where time was not real.
    """

    name: str
    num_sessions: int
    cpu_ms: float
    step_ms: float
    num_steps: int
    wall_ms: float = 0.0

    @property
    def share(self) -> float:
        return self.cpu_ms / self.step_ms


def unstretched(short: ShareRow, long: ShareRow) -> ShareRow:
    """What a step costs the process when its real time is its own time.

    Args:
        short, long: the same load, with less and more real time per step.

    Raises ValueError where they do not differ enough for the line through both to mean something.
    """
    more_ms = long.wall_ms - short.wall_ms
    if more_ms < short.wall_ms / 2:
        raise ValueError(f"{long.name} took hardly longer than {short.name}")
    per_ms = max(0.0, (long.cpu_ms - short.cpu_ms) / more_ms)
    cpu_ms = short.cpu_ms - per_ms * (short.wall_ms - short.step_ms)
    if cpu_ms <= 0:
        raise ValueError(f"{short.name} and {long.name} are too noisy to be compared")
    num_steps = short.num_steps + long.num_steps
    return ShareRow("process", short.num_sessions, cpu_ms, short.step_ms, num_steps, short.step_ms)


def limit_sessions(rows: Sequence[ShareRow]) -> float:
    """Where the line through the least and the greatest load says that a step is filled.

    Both the process and the step grow with the sessions; infinite where the step grows faster.
    """
    least = min(rows, key=lambda row: row.num_sessions)
    most = max(rows, key=lambda row: row.num_sessions)
    num = most.num_sessions - least.num_sessions
    if not num:
        return float("nan")
    closing = (least.step_ms - least.cpu_ms) - (most.step_ms - most.cpu_ms)
    if closing <= 0:
        return float("inf")
    return most.num_sessions + (most.step_ms - most.cpu_ms) * num / closing


def checks_of(rows: Sequence[ShareRow], gap: Gap) -> list[Check]:
    """The bounds, at NUM_SESSIONS."""
    here = [row for row in rows if row.num_sessions == NUM_SESSIONS]
    rounds = sum(row.share for row in here if row.name in ROUNDS)
    checks = [
        _at_most("share/rounds", rounds, ROUNDS_BOUND, "planning, committing, building verdicts"),
        _at_most("share/gap-ms", gap.median_ms, GAP_BOUND_MS, f"{gap.num_live:.0f} live vertices"),
    ]
    whole = [row for row in rows if row.name == "process"]
    at_load = [row.share for row in whole if row.num_sessions == NUM_SESSIONS]
    if at_load:
        limit = limit_sessions(middle_rows(whole))
        note = f"{min(at_load):.2f} to {max(at_load):.2f} in {len(at_load)} pairs of runs"
        if limit == limit:
            note += f"; a step is filled at about {limit:.0f} sessions"
        checks.append(_at_most("share/process", median(at_load), PROCESS_BOUND, note))
    return checks


def middle_rows(rows: Sequence[ShareRow]) -> list[ShareRow]:
    """Of each load the row in the middle."""
    loads = sorted({row.num_sessions for row in rows})
    each = [sorted((r for r in rows if r.num_sessions == n), key=_share_of) for n in loads]
    return [found[len(found) // 2] for found in each]


def _share_of(row: ShareRow) -> float:
    return row.share


def _at_most(name: str, value: float, bound: float, note: str) -> Check:
    return Check(name, value, bound, value <= bound, note=note)


def lines(rows: Sequence[ShareRow], gap: Gap) -> list[str]:
    """For the terminal."""
    return [
        *map(line_of, rows),
        f"gap, {gap.num_sessions} sessions of {gap.num_live:.0f} live vertices: "
        f"{gap.median_ms:.2f} ms, p95 {gap.p95_ms:.2f} ms",
    ]


def line_of(row: ShareRow) -> str:
    """For the terminal."""
    return (
        f"{row.name}, {row.num_sessions} sessions: {row.cpu_ms:.2f} ms a step of "
        f"{row.step_ms:.1f} ms, {row.share:.1%}"
    )
