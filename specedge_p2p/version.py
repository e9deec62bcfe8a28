"""The version of what is installed, for people and for Hello."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer


def software_version(program: str) -> str:
    """`specedge-node 1.2.3`: a command's name and its version."""
    try:
        return f"{program} {version('specedge-p2p')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return f"{program} (source tree)"


def add_version(app: typer.Typer, program: str) -> None:
    """Give a command its `--version`."""

    @app.callback(invoke_without_command=True)
    def root(
        *,
        show_version: Annotated[
            bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)
        ] = False,
    ) -> None:
        if show_version:
            typer.echo(software_version(program))
            raise typer.Exit
