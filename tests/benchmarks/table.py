"""Rows and checks for people: on the terminal, as Markdown and as a chart."""

from collections.abc import Sequence
from html import escape

from rich import box
from rich.table import Table

from tests.benchmarks.figures import Check, Row

COLUMNS = (
    "serving",
    "nodes",
    "tokens/s",
    "runs",
    "spread",
    "ITL ms",
    "p95 gap ms",
    "tokens per engine ms",
    "by nodes",
    "by n-gram",
    "stretch",
    "late",
    "used",
)
_GREEN, _RED, _GREY = "#2a7f62", "#b23a48", "#8a8a8a"
_BAR_HEIGHT, _BAR_GAP, _NAME_WIDTH, _PLOT_WIDTH = 16, 6, 300, 420


def cells_of(row: Row) -> list[str]:
    """One text per column."""
    return [
        row.name,
        str(row.num_nodes),
        f"{row.tokens_per_s:.0f}",
        str(row.num_runs),
        f"{row.spread:.0%}" if row.num_runs > 1 else "",
        f"{row.itl_ms:.1f}",
        f"{row.p95_gap_ms:.0f}",
        f"{row.tokens_per_engine_ms:.3f}",
        f"{row.share_by_nodes:.2f}",
        f"{row.share_by_ngram:.2f}",
        f"{row.stretch:g}",
        f"{row.late_share:.1%}",
        f"{row.used_share:.0%}",
    ]


def rich_table(rows: Sequence[Row]) -> Table:
    table = Table(*COLUMNS, box=box.SIMPLE)
    for row in rows:
        table.add_row(*cells_of(row), style="green" if row.num_nodes else None)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells_of(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def markdown_checks(checks: Sequence[Check]) -> str:
    lines = ["| check | value | standard error | bound | |", "| --- | --- | --- | --- | --- |"]
    for check in checks:
        verdict = check.verdict if check.holds else f"**{check.verdict}**"
        spread = f"{check.spread:.3f}" if check.spread else ""
        lines.append(
            f"| {check.name} | {check.value:.2f} | {spread} | {check.bound:g} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def check_lines(checks: Sequence[Check]) -> list[str]:
    verdicts = (c.verdict if c.holds else c.verdict.upper() for c in checks)
    return [
        f"{verdict}  {check.name}: {check.value:.2f}"
        f" ± {check.spread:.2f}, bound {check.bound:g}  {check.note}"
        for check, verdict in zip(checks, verdicts, strict=True)
    ]


def chart(checks: Sequence[Check]) -> str:
    """The checks as an SVG: a bar for every value, a line for its bound, winners and losers."""
    largest = max([1.0, *(min(check.value, 3.0) for check in checks)])
    scale = _PLOT_WIDTH / largest
    height = (_BAR_HEIGHT + _BAR_GAP) * len(checks) + 30
    width = _NAME_WIDTH + _PLOT_WIDTH + 70
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for place, check in enumerate(checks):
        top = 20 + place * (_BAR_HEIGHT + _BAR_GAP)
        shown = min(check.value, largest)
        colour = _GREY if check.unsaid else _GREEN if check.holds else _RED
        bound = _NAME_WIDTH + min(check.bound, largest) * scale
        parts += [
            f'<text x="{_NAME_WIDTH - 8}" y="{top + 12}" text-anchor="end">'
            f"{escape(check.name)}</text>",
            f'<rect x="{_NAME_WIDTH}" y="{top}" width="{shown * scale:.1f}"'
            f' height="{_BAR_HEIGHT}" fill="{colour}"/>',
            f'<line x1="{bound:.1f}" x2="{bound:.1f}" y1="{top - 2}" y2="{top + _BAR_HEIGHT + 2}"'
            ' stroke="black" stroke-width="2"/>',
            f'<text x="{_NAME_WIDTH + shown * scale + 6:.1f}" y="{top + 12}">'
            f"{check.value:.2f}</text>",
        ]
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
