"""`python -m tests.benchmarks engine`: how close the engine is to what this machine can do.

Every figure is a ratio against a named alternative, taken in turns with it. A section is a function
that measures one side of the engine; `SECTIONS` lists them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from tests.benchmarks.figures import Check

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One way to do something.

    Args:
        name: what is done, and how.
        time_ms: median of one time; of a generation the time per token.
        against: the alternative of the same run, "" where the row is one itself.
        ratio: median of time over the alternative's time; below 1 is faster.
    """

    name: str
    time_ms: float
    against: str = ""
    ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineEffort:
    """How long to measure. `num_repeats` are those of short actions; long ones take a part."""

    num_repeats: int = 40
    num_tokens: int = 96
    num_prompts: int = 4

    @property
    def num_long_repeats(self) -> int:
        return max(1, self.num_repeats // 8)


@dataclass(frozen=True, slots=True)
class EngineFigures:
    rows: tuple[EngineRow, ...]
    checks: tuple[Check, ...]

    def __add__(self, other: "EngineFigures") -> "EngineFigures":
        return EngineFigures(self.rows + other.rows, self.checks + other.checks)


Section = Callable[[EngineEffort], EngineFigures]


def at_least(name: str, value: float, bound: float, note: str = "", spread: float = 0.0) -> Check:
    return Check(name, value, bound, value >= bound, spread, note)


def at_most(name: str, value: float, bound: float, note: str = "", spread: float = 0.0) -> Check:
    return Check(name, value, bound, value <= bound, spread, note)


def measure_engine(
    sections: Sequence[tuple[str, Section]], effort: EngineEffort, say: Say
) -> EngineFigures:
    figures = EngineFigures((), ())
    for name, section in sections:
        say(name)
        figures += section(effort)
    return figures


def engine_table(rows: Sequence[EngineRow]) -> Table:
    table = Table("what", "ms", "against", "time ratio", box=box.SIMPLE)
    for row in rows:
        ratio = f"{row.ratio:.2f}" if row.against else ""
        table.add_row(row.name, f"{row.time_ms:.2f}", row.against, ratio)
    return table
