"""The engine process: load, measure, then verify batch after batch until the socket closes.

One thread. Messages are taken between two steps, right before the next one binds, so that a step
sees the latest trees; batches that arrive early wait in the core's queue.
"""

import json
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict

import msgspec

from coordinator.engine.core import EngineCore
from coordinator.engine.framing import (
    FrameCutter,
    FrameError,
    FromChild,
    decode_to_engine,
    encode,
)
from coordinator.engine.measure import measure_step
from coordinator.engine.messages import LoadFailed, StepDone, ToEngine
from coordinator.engine.settings import EngineLimits, EngineSettings
from specedge_p2p.errors import ClearError
from specedge_p2p.lm.emulated import EmulatedDevice, PaddingTally, emulated_device, sleep_until
from specedge_p2p.lm.ports import LanguageModel

READ_BYTES = 256 * 1024

LoadModel = Callable[[EngineSettings], LanguageModel]


class ParentGone(Exception):
    """The coordinator closed the socket or died."""


class Connection:
    """The child's end of the socket pair. What is not read stays there and slows the sender."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._cutter = FrameCutter()
        self._messages: deque[ToEngine] = deque()

    def send(self, *messages: FromChild) -> None:
        """Raises ParentGone."""
        self._sock.settimeout(None)
        try:
            self._sock.sendall(encode(*messages))
        except OSError as error:
            raise ParentGone from error

    def next_message(self, wait_s: float | None) -> ToEngine | None:
        """The next message, waiting for it up to wait_s (None: without end). Raises ParentGone."""
        if not self._messages:
            self._read(wait_s)
        return self._messages.popleft() if self._messages else None

    def _read(self, wait_s: float | None) -> None:
        self._sock.settimeout(wait_s)
        try:
            data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, TimeoutError):
            return
        except OSError as error:
            raise ParentGone from error
        if not data:
            raise ParentGone
        for frame in self._cutter.feed(data):
            self._messages += decode_to_engine(frame)


class EngineChild:
    """The loop over one connection and one core."""

    def __init__(
        self,
        connection: Connection,
        core: EngineCore,
        step_floor_s: float,
        clock: Callable[[], float] = time.monotonic,
        device: EmulatedDevice | None = None,
    ) -> None:
        self._connection = connection
        self._core = core
        self._step_floor_s = step_floor_s
        self._clock = clock
        self._device = device

    def run(self) -> None:
        """Raises ParentGone when the coordinator has left, FrameError when it speaks nonsense."""
        while True:
            while not self._core.num_queued:
                self._take(self._connection.next_message(None))
            self._drain()
            self._step()

    def _take(self, message: ToEngine | None) -> bool:
        if message is None:
            return False
        self._core.handle(message)
        for failure in self._core.take_failures():
            self._connection.send(failure)
        return True

    def _drain(self) -> None:
        while not self._core.is_full and self._take(self._connection.next_message(0.0)):
            pass

    def _step(self) -> None:
        ends_s = self._clock() + self._step_floor_s
        *failures, done = self._core.step_next()
        assert isinstance(done, StepDone)  # noqa: S101 - for the type checker
        if self._step_floor_s and done.num_forward_rows:
            self._pad(ends_s)
            done = msgspec.structs.replace(done, ended_s=self._clock())
        if self._device is not None:
            done = with_tally(done, self._device.tally)
        self._connection.send(*failures, done)

    def _pad(self, ends_s: float) -> None:
        """Sleep to the floor, with an open ear."""
        while (rest_s := ends_s - self._clock()) > 0:
            if self._core.is_full:
                time.sleep(rest_s)
            elif rest_s > 0.0005:  # a socket timeout rounds up to a millisecond
                self._take(self._connection.next_message(rest_s))


def with_tally(done: StepDone, tally: PaddingTally) -> StepDone:
    return msgspec.structs.replace(
        done,
        num_padded=tally.num_forwards,
        num_late=tally.num_late,
        used_s=tally.used_s,
        padded_s=tally.padded_s,
    )


def load_target(settings: EngineSettings) -> LanguageModel:
    """Load the real thing; imports torch, so only the child may call it. Raises ModelError."""
    from specedge_p2p.lm.loader import load_model

    return load_model(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        cache_rows=settings.cache_rows or None,
        threads=settings.threads or None,
    )


def serve(sock: socket.socket, settings: EngineSettings, load: LoadModel) -> int:
    """The child's life; returns its exit code."""
    connection = Connection(sock)
    try:
        try:
            device = emulated_device(settings.emulate, settings.stretch)
            model = load(settings)
            if device is not None:
                model = device.as_target(model)
        except ClearError as error:
            connection.send(LoadFailed(str(error)))
            return 2
        price = measure_step(model, time.monotonic, settings.step_floor_s)
        limits = EngineLimits(max_sessions=settings.max_sessions)
        core = EngineCore(model, time.monotonic, limits)
        connection.send(core.ready(price.step_time_s, price.row_time_s))
        child = EngineChild(connection, core, settings.step_floor_s, device=device)
        if device is not None:
            device.tally.clear()
            device.idle = sleep_until  # the place of an idle that listens to the connection
        child.run()
    except FrameError as error:
        sys.stderr.write(f"engine: {error}\n")
        return 1
    except ParentGone:
        pass
    return 0


def arguments(sock: socket.socket, settings: EngineSettings) -> list[str]:
    """The command-line arguments of a child that inherits `sock`."""
    return [str(sock.fileno()), json.dumps(asdict(settings))]


def run_child(argv: list[str], load: LoadModel = load_target) -> int:
    """Main of the engine process; argv as made by `arguments`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to answer
    settings = msgspec.json.decode(argv[1], type=EngineSettings)
    with socket.socket(fileno=int(argv[0])) as sock:
        return serve(sock, settings, load)
