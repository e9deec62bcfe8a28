"""The rows as a table, for people and for the documentation."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from tests.benchmarks.figures import Check, Row

COLUMNS = (
    "step floor",
    "round trip",
    "sessions",
    "T",
    "mode",
    "tokens/s",
    "spread",
    "x best without",
    "length",
    "accepted",
    "engine busy",
    "bytes/round",
)


def cells_of(row: Row) -> list[str]:
    """One text per column."""
    return [
        f"{row.step_floor_s * 1000:g} ms" if row.step_floor_s else "none",
        f"{row.round_trip_ms:g} ms",
        str(row.num_sessions),
        f"{row.temperature:g}",
        row.mode,
        f"{row.tokens_per_s:.0f}",
        f"{row.spread:.0%}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        f"{row.acceptance_length:.2f}",
        f"{row.share_accepted:.2f}",
        f"{row.engine_busy:.0%}",
        f"{row.node_bytes_per_round:.0f}",
    ]


def rich_table(rows: Sequence[Row]) -> Table:
    table = Table(*COLUMNS, box=box.SIMPLE)
    for row in rows:
        is_win = row.ratio is not None and row.ratio > 1
        style = None if row.ratio is None else "green" if is_win else "red"
        table.add_row(*cells_of(row), style=style)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells_of(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def check_lines(checks: Sequence[Check]) -> list[str]:
    return [
        f"{'holds' if check.holds else 'FAILS'}  {check.name}: "
        f"{check.value:.2f}, at least {check.bound:g}"
        for check in checks
    ]
