"""A temporary folder that goes with its users, even when they are killed."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

REMOVE_S = 10.0
_REMOVE = 'read -r _; rm -rf -- "$1"'
"""For the shell: wait for the end of the input, then remove."""


@dataclass(frozen=True, slots=True)
class PassingFolder:
    """The folder is there as long as any process holds the descriptor open."""

    path: Path
    holding_fd: int


@contextmanager
def passing_folder(prefix: str) -> Iterator[PassingFolder]:
    """A new folder. A shell of its own waits for the end of all who hold it, and removes it.

    Python's TemporaryDirectory would be left behind by a process that is killed.
    """
    path = Path(tempfile.mkdtemp(prefix=prefix))
    read_fd, holding_fd = os.pipe()
    remover = subprocess.Popen(  # noqa: S603 - a fixed command, and the path is an argument
        ["/bin/sh", "-c", _REMOVE, "sh", str(path)],
        stdin=read_fd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_fd)
    try:
        yield PassingFolder(path, holding_fd)
    finally:
        os.close(holding_fd)
        with suppress(subprocess.TimeoutExpired):
            remover.wait(REMOVE_S)
