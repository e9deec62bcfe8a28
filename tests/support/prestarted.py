"""Processes that begin with everything imported: forks of one that has done it once.

A benchmark starts hundreds of nodes, eight at a time on two cores, and what each would import takes
them longer than many a measurement; the end-to-end tests start dozens. Each is still a process of
its own, with its own arguments, log and end; only the seconds before its first line are saved, and
those of leaving the interpreter. Its environment is that of the first start.
"""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import trio

from specedge_p2p.demo import lifeline
from specedge_p2p.demo.processes import Child

PRELOADED = (
    "node.cli",
    "node.main",
    "specedge_p2p.lm.loader",
    "transformers.models.llama.modeling_llama",
)
"""What a node loads at its start and when it loads its draft model. No thread is started by it."""
STDIN, STDOUT, STDERR = 0, 1, 2


class PrestartedProcess:
    """What is used of `trio.Process`, for a process that the fork server started."""

    def __init__(self, process: ForkServerProcess) -> None:
        assert process.pid is not None
        self._process = process
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, sig: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it is gone before its exit code is here
                os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        while (code := self.poll()) is None:
            await trio.lowlevel.wait_readable(self._process.sentinel)
        return code


def spawn_prestarted(name: str, command: Sequence[str], log_path: Path) -> Child:
    """As `specedge_p2p.demo.processes.spawn`, within a second but for the first."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log_path.write_bytes(b"")
    server, starter_lives = _server()
    process = server.Process(target=_become, args=(tuple(command), str(log_path), starter_lives))
    process.start()
    return Child(name, PrestartedProcess(process), log_path)


@cache
def _server() -> tuple[ForkServerContext, "Connection[None, None]"]:
    """And the reading end of a pipe whose other one is open as long as this process lives."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(PRELOADED))
    read_fd, write_fd = os.pipe()
    # Before multiprocessing waits for all of them, which leave when they see this.
    atexit.register(os.close, write_fd)
    return server, Connection(read_fd, writable=False)


def _become(
    command: tuple[str, ...], log_path: str, starter_lives: "Connection[None, None]"
) -> None:
    """Run a module as `specedge_p2p.demo.processes.spawn` has it run."""
    os.setsid()
    os.dup2(starter_lives.fileno(), STDIN)
    with Path(log_path).open("wb") as log_file:
        os.dup2(log_file.fileno(), STDOUT)
        os.dup2(log_file.fileno(), STDERR)
    sys.argv = [lifeline.__name__, *command]
    lifeline.main()
