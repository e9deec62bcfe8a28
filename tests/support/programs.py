"""Programs that tests start and kill, and what has become of a process."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.network import until


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


def has_gone(pid: int, within_s: float = 20.0) -> bool:
    """Whether a process that is about to end has ended in time."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        try:
            if not is_there(psutil.Process(pid)):
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def said_in(log_path: Path) -> str:
    return log_path.read_text("utf-8", "replace")


async def until_serving(process: psutil.Process, log_path: Path) -> None:
    """Until it listens."""

    async def serves() -> bool:
        assert is_there(process), said_in(log_path)
        return bool(process.net_connections())

    await until(serves, "the process serves")


async def until_gone(process: psutil.Process) -> None:
    async def is_gone() -> bool:
        return not is_there(process)

    await until(is_gone, "the process is gone", 20)
