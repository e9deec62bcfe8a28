"""`specedge-coordinator`: host a target model and see what the volunteers contributed."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import trio
import typer
from platformdirs import user_data_path
from rich.console import Console
from rich.table import Table

from specedge_p2p.errors import ClearError, outside_groups
from specedge_p2p.identity.keys import Identity, parse_peer_id
from specedge_p2p.names import PeerId

app = typer.Typer(
    help="Host a large language model that volunteers' machines make faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)
ledger_app = typer.Typer(help="Who contributed what.", no_args_is_help=True)
identity_app = typer.Typer(help="This coordinator's identity.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(ledger_app, name="ledger")
app.add_typer(identity_app, name="identity")

DEFAULT_HOME = user_data_path("specedge") / "coordinator"
PEER_ID_LENGTH = 52
OWN_PACKAGES = ("coordinator", "dashboard", "specedge_p2p")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

HomeOption = Annotated[
    Path,
    typer.Option(help="Folder of identity and ledger.", envvar="SPECEDGE_COORDINATOR_HOME"),
]
DatabaseOption = Annotated[
    str,
    typer.Option(
        help="Where the ledger is: a SQLite file (default: in HOME) or postgresql://user@host/name.",
        envvar="SPECEDGE_DATABASE_URL",
    ),
]


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


class Volunteers(StrEnum):
    any = "any"
    allowed = "allowed"
    none = "none"


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Option(help="Target model: a folder, a name on the model hub, or demo-target."),
    ] = "demo-target",
    host: Annotated[
        str, typer.Option(help="Address of gateway and dashboard. Others than loopback need keys.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of gateway and dashboard; 0: any.")
    ] = 8000,
    listen: Annotated[
        list[str] | None,
        typer.Option(help="Multiaddress for nodes. Repeatable. Default: /ip4/0.0.0.0/tcp/4011."),
    ] = None,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(help="Multiaddress, with /p2p/<peer id>, of any coordinator. Repeatable."),
    ] = None,
    require_keys: Annotated[
        bool, typer.Option("--require-keys", help="Serve only requests with an API key.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Serve everybody, without keys, on any address.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="Peer id of a node that may draft for `volunteers: allowed`. Repeatable."
        ),
    ] = None,
    suggest: Annotated[
        list[str] | None,
        typer.Option(help="Draft model to suggest to nodes, best first. Repeatable."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Arithmetic of the target model.")] = Dtype.auto,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the engine.")] = 1,
    max_sessions: Annotated[int, typer.Option(min=1, max=4096, help="Live sessions.")] = 64,
    step_floor: Annotated[
        float,
        typer.Option(min=0.0, max=10.0, help="For measuring: pad engine steps to these seconds."),
    ] = 0.0,
    ngram: Annotated[
        bool,
        typer.Option("--ngram/--no-ngram", hidden=True, help="For measuring: guess from the text."),
    ] = True,
    lockstep: Annotated[
        str,
        typer.Option(
            hidden=True,
            metavar="LEVELSxVERTICES[:nopro][:BATCH]",
            help="For measuring: rounds that wait for the nodes, in place of continuous drafting.",
        ),
    ] = "",
    home: HomeOption = DEFAULT_HOME,
    database_url: DatabaseOption = "",
    ready_fd: Annotated[
        int | None,
        typer.Option(help="For programs: say on this descriptor, in one JSON line, where all is."),
    ] = None,
) -> None:
    """Load the target model, serve the gateway, the dashboard and the volunteers.

    Without any option the demo model is served on http://127.0.0.1:8000/v1, to this machine only.
    """
    with clear_errors():
        from coordinator.main import run_coordinator
        from coordinator.settings import CoordinatorSettings, Limits, Lockstep

        if host not in LOOPBACK and not (require_keys or public):
            raise ClearError(
                f"--host {host} can be reached by others: add --require-keys (and make a key with "
                "`specedge-coordinator keys create`) or --public"
            )
        settings = CoordinatorSettings(
            home=home,
            model=model,
            dtype=dtype.value,
            device=device,
            threads=threads,
            step_floor_s=step_floor,
            host=host,
            port=port,
            listen=tuple(listen or ("/ip4/0.0.0.0/tcp/4011",)),
            bootstrap=tuple(bootstrap or ()),
            database_url=database_url or default_database(home),
            require_keys=require_keys,
            allowed_nodes=frozenset(_peer_id(text) for text in allow or ()),
            draft_models=tuple(suggest or (("demo-draft",) if model == "demo-target" else ())),
            limits=Limits(
                max_sessions=max_sessions,
                has_ngram=ngram,
                lockstep=Lockstep.parse(lockstep) if lockstep else None,
            ),
        )
        start_logging()
        trio.run(run_coordinator, settings, ready_fd)


@keys_app.command("create")
def create_key(
    label: Annotated[str, typer.Argument(help="Whom or what the key is for.")],
    volunteers: Annotated[
        Volunteers, typer.Option(help="Who may draft for requests that do not say so.")
    ] = Volunteers.any,
    home: HomeOption = DEFAULT_HOME,
    database_url: DatabaseOption = "",
) -> None:
    """Make an API key. It is shown once and cannot be read back."""
    with clear_errors():
        from coordinator.store import cli_access

        home.mkdir(parents=True, exist_ok=True)
        url = database_url or default_database(home)
        new = cli_access.create_key(url, label, volunteers.value)
        typer.echo(new.key)
        typer.echo(f"key {new.record.key_id} for {label!r}; it is not shown again", err=True)


@keys_app.command("list")
def list_keys(home: HomeOption = DEFAULT_HOME, database_url: DatabaseOption = "") -> None:
    """Show all keys, revoked ones too, without their secrets."""
    with clear_errors():
        from coordinator.store import cli_access

        records = cli_access.list_keys(_existing(home, database_url))
        table = Table("id", "label", "volunteers", "created", "revoked")
        for record in records:
            table.add_row(
                record.key_id,
                record.label,
                record.volunteers,
                _date(record.created_at_s),
                _date(record.revoked_at_s),
            )
        Console().print(table)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")],
    home: HomeOption = DEFAULT_HOME,
    database_url: DatabaseOption = "",
) -> None:
    """Take a key's rights away for ever."""
    with clear_errors():
        from coordinator.store import cli_access

        if not cli_access.revoke_key(_existing(home, database_url), key_id):
            raise ClearError(f"there is no live key {key_id}; see `keys list`")
        typer.echo(f"key {key_id} is revoked")


@ledger_app.command("summary")
def ledger_summary(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    home: HomeOption = DEFAULT_HOME,
    database_url: DatabaseOption = "",
) -> None:
    """Accepted tokens and credits per node, and whether the sums are sound."""
    with clear_errors():
        from coordinator.store import cli_access

        summary = cli_access.ledger_summary(_existing(home, database_url))
        if as_json:
            content = {
                "num_transfers": summary.num_transfers,
                "sum": summary.sum_micro_credits,
                "accepted_by_node": summary.accepted_by_node,
                "micro_credits_by_node": summary.micro_credits_by_node,
            }
            typer.echo(json.dumps(content))
            return
        table = Table("accepted tokens", "credits")
        table.add_column("node", no_wrap=True, min_width=PEER_ID_LENGTH)
        for peer_id, num_accepted in summary.accepted_by_node.items():
            credit = summary.micro_credits_by_node.get(peer_id, 0) / 1_000_000
            table.add_row(str(num_accepted), f"{credit:g}", peer_id)
        Console().print(table)
        typer.echo(
            f"{summary.num_transfers} transfers, all balances sum to {summary.sum_micro_credits}"
        )


@ledger_app.command("verify")
def ledger_verify(home: HomeOption = DEFAULT_HOME, database_url: DatabaseOption = "") -> None:
    """Recompute every balance and check every receipt; exit code 1 where something is wrong."""
    with clear_errors():
        from coordinator.store import cli_access

        findings = cli_access.ledger_findings(_existing(home, database_url))
        for finding in findings:
            typer.echo(f"{finding.subject}: {finding.text}", err=True)
        if findings:
            raise typer.Exit(1)
        typer.echo("the ledger is sound")


@identity_app.command("show")
def identity_show(home: HomeOption = DEFAULT_HOME) -> None:
    """Print the peer id; the key is made where there is none yet."""
    with clear_errors():
        home.mkdir(parents=True, exist_ok=True)
        typer.echo(Identity.load_or_create(home / "identity.pem").peer_id)


def _peer_id(text: str) -> PeerId:
    try:
        return parse_peer_id(text)
    except ValueError as error:
        raise ClearError(f"--allow {text}: {error}") from error


def default_database(home: Path) -> str:
    return str(home / "ledger.sqlite")


def _existing(home: Path, url: str) -> str:
    """The database to look at. A SQLite file is not made by looking at it."""
    url = url or default_database(home)
    if "://" not in url and not Path(url).exists():
        raise ClearError(f"there is no ledger at {url}; name another with --home or --database-url")
    return url


def _date(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(sep=" ", timespec="seconds")


def start_logging() -> None:
    """Log to stderr, one line per event."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("httpx", "hypercorn.error", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def clear_errors() -> Iterator[None]:
    """What a person can mend becomes one line and exit code 2; Ctrl-C ends quietly."""
    try:
        with outside_groups():
            yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in OWN_PACKAGES:
            raise
        typer.echo(
            f"specedge-coordinator needs {error.name}: pip install 'specedge-p2p[coordinator]'",
            err=True,
        )
        raise typer.Exit(2) from None
    except (ClearError, ValueError, OSError) as error:
        typer.echo(f"specedge-coordinator: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def main() -> None:
    app()


if __name__ == "__main__":
    main()
