"""`specedge-node`: join the network as a volunteer, and look at what you earned."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import trio
import typer
from rich.console import Console
from rich.logging import RichHandler

from node.hardware import limit_threads, yield_to_others
from node.main import EXPECTED_FAILURES, run_node
from node.profiling import run_profile
from node.receipts import ReceiptBook
from node.settings import (
    AUTO,
    Drafting,
    Dtype,
    NodeSettings,
    Priority,
    default_home,
    default_threads,
    software_version,
)
from specedge_p2p.errors import outside_groups
from specedge_p2p.identity.keys import Identity, IdentityError
from specedge_p2p.lm.quantization import Quantize

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

Home = Annotated[
    Path,
    typer.Option(
        help="Folder of your key, receipts and known coordinators; one node per folder."
        " $SPECEDGE_HOME moves the default.",
        default_factory=default_home,
        show_default="$SPECEDGE_HOME/node, else your user data folder",
    ),
]


Coordinators = Annotated[
    list[str] | None,
    typer.Option(
        help="Multiaddress of a coordinator, as it prints it at start:"
        " /ip4/203.0.113.5/tcp/4011/p2p/12D3Koo... May be given more than once.",
        metavar="MULTIADDR",
    ),
]
Bootstrap = Annotated[
    list[str] | None,
    typer.Option(
        help="Any peer of the network; coordinators are found through it.",
        metavar="MULTIADDR",
    ),
]
DraftModels = Annotated[
    list[str] | None,
    typer.Option(
        help="Name on the model hub, or a folder. 'auto', the default, takes what the coordinator"
        " suggests. Its tokenizer must be the target's. Of several the one that is worth most"
        " here is taken.",
        metavar="NAME|PATH|auto",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        help="CPU threads of the draft model. One per process is best on small machines.",
        metavar="N",
        default_factory=lambda: default_threads(os.cpu_count()),
        show_default="1, or half the cores from 5 on",
    ),
]
Arithmetic = Annotated[Dtype, typer.Option(help="Arithmetic; auto is float32, on a GPU bfloat16.")]
Weights = Annotated[
    Quantize, typer.Option(help="Weights of the draft model in 8 or 4 bits; needs torchao.")
]
Device = Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda, cuda:1.")]
LinkDelay = Annotated[
    float,
    typer.Option(help="For measuring: adds this round trip to the link, half each way."),
]


@app.callback(invoke_without_command=True)
def root(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)
    ] = False,
) -> None:
    if show_version:
        print(software_version())
        raise typer.Exit


@app.command()
def join(
    *,
    home: Home,
    coordinator: Coordinators = None,
    bootstrap: Bootstrap = None,
    draft_model: DraftModels = None,
    max_sessions: Annotated[
        int, typer.Option(help="Most requests to draft for at once.", metavar="N")
    ] = 16,
    threads: Threads,
    dtype: Arithmetic = "auto",
    quantize: Weights = "none",
    device: Device = "auto",
    priority: Annotated[
        Priority,
        typer.Option(help="low: everything else on this machine goes first. normal: share evenly."),
    ] = "low",
    link_delay_ms: LinkDelay = 0.0,
    link_jitter_ms: Annotated[float, typer.Option(hidden=True)] = 0.0,
    link_loss: Annotated[float, typer.Option(hidden=True)] = 0.0,
    link_churn_s: Annotated[float, typer.Option(hidden=True)] = 0.0,
    link_seed: Annotated[int, typer.Option(hidden=True)] = 0,
    emulate: Annotated[str, typer.Option(hidden=True)] = "",
    stretch: Annotated[float, typer.Option(hidden=True)] = 1.0,
    report: Annotated[Path | None, typer.Option(hidden=True)] = None,
    drafting: Annotated[Drafting, typer.Option(hidden=True)] = "honest",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    """Join the network and draft until Ctrl-C.

    Without --coordinator the node asks the coordinators it knew last, then looks for others
    through --bootstrap. It needs no open port. It comes back by itself when a link is lost;
    Ctrl-C says goodbye first. SIGUSR1 pauses and resumes.
    """
    console = Console(stderr=True)
    _log_to(console, verbose=verbose)
    if priority == "low":
        yield_to_others()
    with _one_line_failures(interrupted=0):
        settings = replace(
            _settings(home, coordinator, bootstrap, draft_model, threads, dtype, device),
            max_sessions=max_sessions,
            quantize=quantize,
            link_delay_s=link_delay_ms / 1000,
            link_jitter_s=link_jitter_ms / 1000,
            link_loss=link_loss,
            link_churn_s=link_churn_s,
            link_seed=link_seed,
            emulate=emulate,
            stretch=stretch,
            report=report,
            drafting=drafting,
        )
        trio.run(run_node, settings, console)


@app.command()
def profile(
    *,
    home: Home,
    coordinator: Coordinators = None,
    bootstrap: Bootstrap = None,
    draft_model: DraftModels = None,
    threads: Threads,
    dtype: Arithmetic = "auto",
    quantize: Weights = "none",
    device: Device = "auto",
    link_delay_ms: LinkDelay = 0.0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    """Measure draft models here and show which is worth most to a coordinator, and why.

    The coordinator gives a short sample of its target's tokens; every draft model named, or else
    every one that the coordinator suggests, is timed and is tried on it. `join` uses what was
    measured for as long as model, machine and software are the same.
    """
    _log_to(Console(stderr=True), verbose=verbose)
    with _one_line_failures(interrupted=130):
        settings = _settings(home, coordinator, bootstrap, draft_model, threads, dtype, device)
        settings = replace(settings, quantize=quantize, link_delay_s=link_delay_ms / 1000)
        trio.run(run_profile, settings, Console())


@identity_app.command("show")
def identity_show(*, home: Home) -> None:
    """Print your peer id; makes a key where there is none yet."""
    print(_identity(home).peer_id)


@receipts_app.command("list")
def receipts_list(
    *, home: Home, limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20
) -> None:
    """Print the newest receipts and what each coordinator owes you in all."""
    book = _book(home)
    for body in book.list(limit):
        at = datetime.fromtimestamp(body.issued_at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        print(
            f"{at}  {body.coordinator}  #{body.sequence}  {body.num_accepted} tokens"
            f"  {body.micro_credits / 1e6:g} credits"
        )
    for total in book.totals():
        print(
            f"{total.coordinator}: {total.num_receipts} receipts, {total.num_accepted} tokens,"
            f" {total.micro_credits / 1e6:g} credits"
        )
    book.close()


@receipts_app.command("audit")
def receipts_audit(*, home: Home) -> None:
    """Check every signature and the whole chain of receipts again; exit code 1 if one is bad."""
    book = _book(home)
    findings, totals = book.audit(), book.totals()
    book.close()
    for finding in findings:
        print(f"{finding.coordinator} #{finding.sequence}: {finding.problem}", file=sys.stderr)
    if findings:
        raise typer.Exit(1)
    print(f"{sum(total.num_receipts for total in totals)} receipts, all good")


def main() -> None:
    app()


def _settings(
    home: Path,
    coordinators: list[str] | None,
    bootstrap: list[str] | None,
    draft_models: list[str] | None,
    threads: int,
    dtype: Dtype,
    device: str,
) -> NodeSettings:
    """What `join` and `profile` have in common. Raises SettingsError."""
    limit_threads(threads)
    return NodeSettings(
        home=home,
        coordinators=tuple(coordinators or ()),
        bootstrap=tuple(bootstrap or ()),
        draft_models=tuple(draft_models or (AUTO,)),
        threads=threads,
        dtype=dtype,
        device=device,
    )


@contextmanager
def _one_line_failures(interrupted: int) -> Iterator[None]:
    """Leave with 2 and one line for what a person can put right, with `interrupted` at Ctrl-C."""
    try:
        with outside_groups():
            yield
    except EXPECTED_FAILURES as error:
        _fail(str(error))
    except KeyboardInterrupt:  # before or after the signal receiver, in whatever nursery
        raise typer.Exit(interrupted) from None


def _identity(home: Path) -> Identity:
    try:
        return Identity.load_or_create(home / "identity.pem")
    except IdentityError as error:
        _fail(str(error))


def _book(home: Path) -> ReceiptBook:
    identity = _identity(home)
    return ReceiptBook(home / "receipts.sqlite3", identity.peer_id)


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
