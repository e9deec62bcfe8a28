"""`specedge-node`: join the network as a volunteer, and look at what you earned."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import trio
import typer
from rich.console import Console
from rich.logging import RichHandler

from node.hardware import yield_to_others
from node.main import run_node
from node.options import DraftOptions, Home, takes_draft_options
from node.profiling import run_profile
from node.receipts import ReceiptBook
from node.settings import Drafting, Priority
from specedge_p2p.errors import ClearError, outside_groups
from specedge_p2p.identity.keys import Identity
from specedge_p2p.plural import counted
from specedge_p2p.version import add_version

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Volunteer your machine: it guesses the next tokens of other people's requests with a small"
        " draft model, a coordinator checks the guesses with the big one, and every accepted token"
        " earns credit.\n\nStart with: specedge-node join"
    ),
)
identity_app = typer.Typer(no_args_is_help=True, help="Your key: who you are in the network.")
receipts_app = typer.Typer(no_args_is_help=True, help="What coordinators signed that they owe you.")
app.add_typer(identity_app, name="identity")
app.add_typer(receipts_app, name="receipts")
add_version(app, "specedge-node")


@app.command()
@takes_draft_options
def join(
    options: DraftOptions,
    *,
    max_sessions: Annotated[
        int, typer.Option(help="Most requests to draft for at once.", metavar="N")
    ] = 16,
    priority: Annotated[
        Priority,
        typer.Option(help="low: everything else on this machine goes first. normal: share evenly."),
    ] = "low",
    link_jitter_ms: Annotated[float, typer.Option(hidden=True)] = 0.0,
    link_loss: Annotated[float, typer.Option(hidden=True)] = 0.0,
    link_churn_s: Annotated[float, typer.Option(hidden=True)] = 0.0,
    link_seed: Annotated[int, typer.Option(hidden=True)] = 0,
    emulate: Annotated[str, typer.Option(hidden=True)] = "",
    stretch: Annotated[float, typer.Option(hidden=True)] = 1.0,
    report: Annotated[Path | None, typer.Option(hidden=True)] = None,
    drafting: Annotated[Drafting, typer.Option(hidden=True)] = "honest",
) -> None:
    """Join the network and draft until Ctrl-C.

    Without --coordinator the node asks the coordinators it knew last, then looks for others
    through --bootstrap. It needs no open port. It comes back by itself when a link is lost;
    Ctrl-C says goodbye first. SIGUSR1 pauses and resumes.
    """
    console = Console(stderr=True)
    _log_to(console, verbose=options.verbose)
    with _one_line_failures(interrupted=0), _cursor_back(console):
        settings = replace(
            options.settings(),
            max_sessions=max_sessions,
            link_jitter_s=link_jitter_ms / 1000,
            link_loss=link_loss,
            link_churn_s=link_churn_s,
            link_seed=link_seed,
            emulate=emulate,
            stretch=stretch,
            report=report,
            drafting=drafting,
        )
        if priority == "low":
            yield_to_others()
        trio.run(run_node, settings, console)


@app.command()
@takes_draft_options
def profile(options: DraftOptions) -> None:
    """Measure draft models here and show which is worth most to a coordinator, and why.

    The coordinator gives a short sample of its target's tokens; every draft model named, or else
    every one that the coordinator suggests, is timed and is tried on it. `join` uses what was
    measured for as long as model, machine and software are the same.

    The columns: `first guess right`, how often the model's best guess was the target's token in the
    sample; `level`, the time that one level of a tree of guesses takes here; `pays up to`, the
    longest level with which it would beat the best of the others; `tokens per step`, what it is
    expected to add to each step of the engine for one request. +0.00: drafting does not pay here.
    """
    console = Console()
    _log_to(Console(stderr=True), verbose=options.verbose)
    with _one_line_failures(interrupted=130), _cursor_back(console):
        trio.run(run_profile, options.settings(), console)


@identity_app.command("show")
def identity_show(*, home: Home) -> None:
    """Print your peer id; makes a key where there is none yet."""
    with _one_line_failures(interrupted=130):
        print(Identity.load_or_create(home / "identity.pem").peer_id)


@receipts_app.command("list")
def receipts_list(
    *, home: Home, limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20
) -> None:
    """Print the newest receipts and what each coordinator owes you in all."""
    with _book(home) as book:
        if book is None:
            print(_no_receipts(home))
            return
        bodies, totals = book.list(limit), book.totals()
    if not totals:
        print(_no_receipts(home))
    for body in bodies:
        at = datetime.fromtimestamp(body.issued_at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        print(
            f"{at}  {body.coordinator}  #{body.sequence}  {counted(body.num_accepted, 'token')}"
            f"  {counted(body.micro_credits / 1e6, 'credit')}"
        )
    for total in totals:
        print(
            f"{total.coordinator}: {counted(total.num_receipts, 'receipt')},"
            f" {counted(total.num_accepted, 'token')},"
            f" {counted(total.micro_credits / 1e6, 'credit')}"
        )


@receipts_app.command("audit")
def receipts_audit(*, home: Home) -> None:
    """Check every signature and the whole chain of receipts again; exit code 1 if one is bad."""
    with _book(home) as book:
        if book is None:
            print(_no_receipts(home))
            return
        findings, totals = book.audit(), book.totals()
    for finding in findings:
        print(f"{finding.coordinator} #{finding.sequence}: {finding.problem}", file=sys.stderr)
    if findings:
        raise typer.Exit(1)
    num_receipts = sum(total.num_receipts for total in totals)
    print(f"{counted(num_receipts, 'receipt')}, all good" if totals else _no_receipts(home))


def main() -> None:
    try:
        app()
    except SystemExit as end:
        if threading.active_count() > 1 and isinstance(end.code, int):
            _end_without_threads(end.code)
        raise


def _end_without_threads(code: int) -> NoReturn:
    """End now. Python would wait for a download that was left, and trip over torch's threads."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


@contextmanager
def _one_line_failures(interrupted: int) -> Iterator[None]:
    """Leave with 2 and one line for what a person can put right, with `interrupted` at Ctrl-C."""
    try:
        with outside_groups():
            yield
    except ClearError as error:
        _fail(str(error))
    except KeyboardInterrupt:  # before or after the signal receiver, in whatever nursery
        raise typer.Exit(interrupted) from None


@contextmanager
def _cursor_back(console: Console) -> Iterator[None]:
    """The bar of a download hides the cursor, and does not come to its end when it is left."""
    try:
        yield
    finally:
        console.show_cursor()


@contextmanager
def _book(home: Path) -> Iterator[ReceiptBook | None]:
    """None where there is none: looking makes neither a key nor a book."""
    key, file = home / "identity.pem", home / "receipts.sqlite3"
    with _one_line_failures(interrupted=130):
        identity = Identity.load(key) if key.exists() or file.exists() else None
        if identity is None or not file.exists():
            yield None
            return
        with closing(ReceiptBook(file, identity.peer_id)) as book:
            yield book


def _no_receipts(home: Path) -> str:
    return f"no receipts yet in {home}"


def _log_to(console: Console, *, verbose: bool) -> None:
    handler: logging.Handler = (
        RichHandler(console=console, show_path=False, show_level=False)
        if console.is_terminal
        else logging.StreamHandler(sys.stderr)
    )
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", datefmt="%H:%M:%S", handlers=[handler]
    )
    logging.getLogger("node").setLevel(logging.DEBUG if verbose else logging.INFO)


def _fail(text: str) -> NoReturn:
    print(f"specedge-node: {' '.join(text.split())}", file=sys.stderr)
    raise typer.Exit(2)


if __name__ == "__main__":
    main()
