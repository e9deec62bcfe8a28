"""`specedge-coordinator keys`, `ledger` and `identity`: what is kept in its home and database."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from coordinator.cli_common import (
    DEFAULT_HOME,
    DatabaseOption,
    HomeOption,
    clear_errors,
    default_database,
)
from specedge_p2p.errors import ClearError
from specedge_p2p.identity.keys import Identity
from specedge_p2p.plural import counted

PEER_ID_LENGTH = 52

keys_app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)
ledger_app = typer.Typer(help="Who contributed what.", no_args_is_help=True)
identity_app = typer.Typer(help="This coordinator's identity.", no_args_is_help=True)


class Volunteers(StrEnum):
    any = "any"
    allowed = "allowed"
    none = "none"


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
        transfers = counted(summary.num_transfers, "transfer")
        typer.echo(f"{transfers}, all balances sum to {summary.sum_micro_credits}")


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
