"""The version of what is installed, for people and for Hello."""

from importlib.metadata import PackageNotFoundError, version


def software_version(program: str) -> str:
    """`specedge-node 1.2.3`: a command's name and its version."""
    try:
        return f"{program} {version('specedge-p2p')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return f"{program} (source tree)"
