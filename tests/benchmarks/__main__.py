"""`python -m tests.benchmarks pipeline`: measure, show, and keep the figures."""

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import trio
import typer
from rich.console import Console

from specedge_p2p.errors import ClearError, outside_groups
from tests.benchmarks.figures import checks_of
from tests.benchmarks.machine import this_machine
from tests.benchmarks.pipeline import Effort, all_cells
from tests.benchmarks.pipeline import run as run_pipeline
from tests.benchmarks.table import check_lines, markdown_table, rich_table

FULL = Effort(num_repeats=3, num_tokens=64)
QUICK = Effort(num_repeats=1, num_tokens=32)

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def benchmarks() -> None:
    """Benchmarks on real processes; run them on a machine that does nothing else."""


@app.command()
def pipeline(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the table to this file, for the documentation.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Run the cells whose names contain this, as in floor40-rtt0-s8.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="One short repeat of everything.")] = False,
) -> None:
    """Tokens per second without guesses, with n-gram guesses and with volunteer nodes."""
    if not all_cells(only):
        names = ", ".join(cell.name for cell in all_cells())
        raise typer.BadParameter(f"no cell is called that; there are {names}", param_hint="--only")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    machine = this_machine()
    effort = QUICK if quick else FULL
    chosen = Effort(effort.num_repeats, effort.num_tokens, only)
    try:
        with outside_groups():
            rows = trio.run(run_pipeline, chosen, lambda text: print(text, file=sys.stderr))
    except ClearError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise typer.Exit(2) from None
    checks = checks_of(rows)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(str(machine))
    console.print(rich_table(rows))
    for line in check_lines(checks):
        console.print(line)
    if json_file is not None:
        content = {
            "machine": asdict(machine),
            "rows": [asdict(row) for row in rows],
            "checks": [asdict(check) for check in checks],
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    if markdown is not None:
        markdown.write_text(markdown_table(rows), "utf-8")


if __name__ == "__main__":
    app(prog_name="python -m tests.benchmarks")
