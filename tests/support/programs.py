"""Programs that tests start and kill, and what has become of a process."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil


@contextmanager
def program(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """Killed at the end; what it says can be read."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> list[str]:
    """The words of its next line."""
    assert process.stdout is not None
    return process.stdout.readline().split()


def is_there(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
