"""What all commands of `specedge-coordinator` share: options, and errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_data_path

from specedge_p2p.errors import ClearError, outside_groups

DEFAULT_HOME = user_data_path("specedge") / "coordinator"
OWN_PACKAGES = ("coordinator", "dashboard", "specedge_p2p")

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


def default_database(home: Path) -> str:
    return str(home / "ledger.sqlite")


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
            f"specedge-coordinator needs {error.name}: in your clone, pip install '.[coordinator]'",
            err=True,
        )
        raise typer.Exit(2) from None
    except (ClearError, ValueError, OSError) as error:
        typer.echo(f"specedge-coordinator: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
