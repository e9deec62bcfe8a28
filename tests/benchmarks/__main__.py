"""`python -m tests.benchmarks pipeline`: measure, show, and keep the figures."""

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import trio
import typer
from msgspec import convert
from rich.console import Console

from specedge_p2p.errors import ClearError, outside_groups
from tests.benchmarks import determinism as flips
from tests.benchmarks.cells import all_cells
from tests.benchmarks.engine import EngineEffort, engine_table, measure_engine
from tests.benchmarks.engine_sections import SECTIONS
from tests.benchmarks.figures import Run
from tests.benchmarks.machine import this_machine
from tests.benchmarks.pipeline import Effort, Figures, measure
from tests.benchmarks.record import record_pair
from tests.benchmarks.seed_rows import rows
from tests.benchmarks.share import share
from tests.benchmarks.table import (
    chart,
    check_lines,
    markdown_checks,
    markdown_table,
    rich_table,
)

NUM_REPEATS = 2

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
        Path | None, typer.Option(help="Write the tables to this file, for the documentation.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the checks into this file.")] = None,
    only: Annotated[
        str, typer.Option(help="Run the cells whose names contain this, as in equal/a100-32b.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Half of the requests.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what the --json file holds already.")
    ] = False,
    repeat: Annotated[
        bool,
        typer.Option("--all", help=f"Every mode {NUM_REPEATS} times, the second-best trees too."),
    ] = False,
) -> None:
    """Tokens per second with volunteers against every way of doing without them."""
    names = [cell.name for cell in all_cells()]
    if not any(only in name for name in names):
        choice = f"no cell is called that; there are {', '.join(names)}"
        raise typer.BadParameter(choice, param_hint="--only")
    if resume and json_file is None:
        raise typer.BadParameter("needs --json, the file to go on with", param_hint="--resume")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    machine = this_machine()
    effort = Effort(
        num_jobs=8 if quick else 16,
        num_repeats=NUM_REPEATS if repeat else 1,
        only=only,
        is_whole=repeat,
    )

    known: list[Run] = []
    if resume and json_file is not None and json_file.exists():
        known = convert(json.loads(json_file.read_text("utf-8"))["runs"], list[Run], strict=False)

    def keep(figures: Figures) -> None:
        if json_file is not None:
            json_file.write_text(_json(asdict(machine), figures), "utf-8")

    try:
        with outside_groups():
            figures = trio.run(measure, effort, known, _say, keep)
    except ClearError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise typer.Exit(2) from None
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(str(machine))
    console.print(rich_table(figures.rows))
    for line in check_lines(figures.checks):
        console.print(line)
    keep(figures)
    if markdown is not None:
        text = markdown_checks(figures.checks) + "\n" + markdown_table(figures.rows)
        markdown.write_text(text, "utf-8")
    if svg is not None:
        svg.write_text(chart(figures.checks), "utf-8")


@app.command()
def determinism(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    num_tokens: Annotated[
        int, typer.Option("--tokens", min=1, max=1800, help="Of each of the texts.")
    ] = 640,
    device: Annotated[str, typer.Option(help="That the dtypes are tried on: cpu, cuda.")] = "cpu",
) -> None:
    """How often the shape of a batch changes a token, by dtype."""
    figures = flips.measure(num_tokens, device)
    print(this_machine())
    print(flips.table(figures.rows))
    print("\n".join(check_lines(figures.checks)))
    if json_file is not None:
        content = {"machine": asdict(this_machine()), **asdict(figures)}
        json_file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


@app.command()
def engine(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    only: Annotated[str, typer.Option(help="Run the sections whose names contain this.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A quarter of the repeats.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Only show where the time of a step goes.")
    ] = False,
) -> None:
    """The engine on this machine against transformers and against forwards written by hand."""
    wanted = "host" if profile else only
    chosen = [(name, section) for name, section in SECTIONS if wanted in name]
    if not chosen:
        names = ", ".join(name for name, _ in SECTIONS)
        raise typer.BadParameter(f"no section is called that; there are {names}")
    machine = this_machine()
    figures = measure_engine(chosen, EngineEffort(10) if quick else EngineEffort(), _say)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(str(machine))
    console.print(engine_table(figures.rows))
    for line in check_lines(figures.checks):
        console.print(line)
    if json_file is not None:
        content = {"machine": asdict(machine), **asdict(figures)}
        json_file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


app.command("record")(record_pair)
app.command()(share)
app.command()(rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _json(machine: dict[str, object], figures: Figures) -> str:
    content = {
        "machine": machine,
        "rows": [asdict(row) for row in figures.rows],
        "checks": [asdict(check) for check in figures.checks],
        "runs": [asdict(run) for run in figures.runs],
    }
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    app(prog_name="python -m tests.benchmarks")
