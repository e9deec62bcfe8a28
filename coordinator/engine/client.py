"""The engine as the coordinator sees it: a child process that is watched and brought back."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

import coordinator
from coordinator.engine.child import arguments
from coordinator.engine.framing import FrameCutter, FrameError, decode_from_child, encode
from coordinator.engine.mailbox import Letters, MailboxEngine
from coordinator.engine.messages import FromEngine, LoadFailed, Ready
from coordinator.engine.settings import EngineSettings, RespawnPolicy
from specedge_p2p.tasks import TaskStatus

COMMAND = (sys.executable, "-m", "coordinator.engine.process")
READ_BYTES = 256 * 1024
MAX_LETTERS_PER_WRITE = 64


class ProcessEngine(MailboxEngine):
    """Implements `ports.Engine` over a child process.

    Args:
        command: what to start; the socket and the settings are appended as arguments.
    """

    def __init__(
        self,
        settings: EngineSettings,
        policy: RespawnPolicy | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._policy = policy or RespawnPolicy()
        self._command = command
        self._process: trio.Process | None = None
        self._load_error = ""
        self._was_ready = False

    @property
    def pid(self) -> int | None:
        """Process id of the running child."""
        return self._process.pid if self._process is not None else None

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a child alive until cancelled, or until it is given up (`receive` then raises)."""
        task_status.started(None)
        policy = self._policy
        num_quick, error = 0, "the engine was stopped"
        try:
            while True:
                started_s = trio.current_time()
                text = await self._one_life()
                if self._load_error:
                    error = self._load_error
                    return
                is_quick = trio.current_time() - started_s < policy.quick_s
                num_quick = num_quick + 1 if is_quick else 0
                if num_quick >= policy.max_quick_deaths:
                    error = f"the engine died {num_quick} times in a row; the last time {text}"
                    return
                await self._mailbox.end(text)
                wait_s = policy.first_wait_s * 2 ** max(0, num_quick - 1)
                await trio.sleep(min(wait_s, policy.max_wait_s))
        finally:
            self._mailbox.give_up(error)

    async def _one_life(self) -> str:
        """Start a child and pass messages both ways until it is gone; returns how it ended."""
        ours, theirs = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        inbox = self._mailbox.begin()
        has_left = False
        try:
            with theirs:
                self._process = await self._spawn(theirs)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_write, stream, inbox)
                await self._read(stream)
                has_left = True
                nursery.cancel_scope.cancel()
        finally:
            self._mailbox.close_inbox()
            inbox.close()
            stream.socket.close()  # a child that lives on sees this and leaves
            text = await self._bury(has_left)
        return text

    async def _spawn(self, theirs: socket.socket) -> trio.Process:
        """A session of its own: a Ctrl-C in our terminal is not the child's business."""
        return await trio.lowlevel.open_process(
            [*self._command, *arguments(theirs, self._settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env=_environment(self._settings.threads),
        )

    async def _bury(self, has_left: bool) -> str:
        """End the child unless it has left by itself; wait for its end, or enforce it."""
        process, self._process = self._process, None
        if process is None:
            return "it could not be started"
        with trio.CancelScope(shield=True):
            if not has_left:
                process.terminate()
            with trio.move_on_after(self._policy.close_wait_s):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
        return _describe(process.returncode or 0)

    async def _read(self, stream: trio.SocketStream) -> None:
        """Deliver what the child says, until it is gone or speaks nonsense."""
        cutter = FrameCutter()
        try:
            while data := await stream.receive_some(READ_BYTES):
                for frame in cutter.feed(data):
                    for message in decode_from_child(frame):
                        await self._deliver(message)
        except (trio.BrokenResourceError, FrameError):
            return

    async def _deliver(self, message: FromEngine | LoadFailed) -> None:
        if isinstance(message, LoadFailed):
            # a model that could be loaded once may be found again; the first time it is final
            self._load_error = "" if self._was_ready else message.text
            return
        self._was_ready = self._was_ready or isinstance(message, Ready)
        await self._mailbox.deliver(message)


@asynccontextmanager
async def open_engine(
    settings: EngineSettings,
    policy: RespawnPolicy | None = None,
    command: Sequence[str] = COMMAND,
) -> AsyncIterator[ProcessEngine]:
    """A supervised engine; the child is gone when the context is left."""
    engine = ProcessEngine(settings, policy, command)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        yield engine
        nursery.cancel_scope.cancel()


async def _write(stream: trio.SocketStream, inbox: trio.MemoryReceiveChannel[Letters]) -> None:
    """Send what the coordinator hands over; a child that died is the reader's to notice."""
    try:
        async for letters in inbox:
            # One write for all that waits: the link of every node puts letters in.
            parts = [encode(*letters)]
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while len(parts) < MAX_LETTERS_PER_WRITE:
                    parts.append(encode(*inbox.receive_nowait()))
            await stream.send_all(b"".join(parts))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


def _environment(threads: int) -> dict[str, str]:
    """Ours, plus the folder that our own packages came from and the number of threads."""
    folder = str(Path(coordinator.__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH", "")
    added = {"PYTHONPATH": os.pathsep.join([folder, known] if known else [folder])}
    if threads:  # read by the numerical libraries when they are first imported
        added |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **added}


def _describe(returncode: int) -> str:
    if returncode < 0:
        return f"the engine process was killed by {signal.Signals(-returncode).name}"
    return f"the engine process ended with exit code {returncode}"
