"""The engine process: load, measure, then verify batch after batch until the socket closes.

One thread. Messages are taken between two steps, right before the next one binds, so that a step
sees the latest trees; batches that arrive early wait in the core's queue. While a GPU computes the
child listens, so that the next step's trees are there when it begins (`hear_while`); where a step
is padded to the time of a slower device it listens as well (`idle`).
"""

import json
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

import msgspec

from coordinator.engine.core import EngineCore
from coordinator.engine.framing import (
    FrameCutter,
    FrameError,
    FromChild,
    decode_to_engine,
    encode,
)
from coordinator.engine.measure import NO_PRICE, StepPrice, measure_level, measure_step
from coordinator.engine.messages import (
    AddVertices,
    CloseSession,
    DropSource,
    LoadFailed,
    OpenSession,
    StepDone,
    ToEngine,
    VerificationBatch,
)
from coordinator.engine.models import EngineModels, LoadModels, load_models, on_device
from coordinator.engine.settings import EngineLimits, EngineSettings
from specedge_p2p.errors import ClearError
from specedge_p2p.garbage import look_for_cycles_rarely
from specedge_p2p.lm.emulated import EmulatedDevice, PaddingTally, emulated_device
from specedge_p2p.lm.ports import BusyModel

READ_BYTES = 256 * 1024
MAX_DEFERRED = 64
"""Messages set aside during a step; more stay in the socket and slow the sender."""
POLL_S = 5e-5
"""Between two looks at a device that computes, when nothing arrives."""
SOCKET_GRAIN_S = 0.0015
"""A socket's timeout is rounded up to a millisecond: the last of a wait is slept."""


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
        step_floor_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        device: EmulatedDevice | None = None,
    ) -> None:
        self._connection = connection
        self._core = core
        self._step_floor_s = step_floor_s
        self._clock = clock
        self._device = device
        self._is_stepping = False
        self._deferred: deque[ToEngine] = deque()
        self._unsettled: set[int] = set()
        """Sessions that a message set aside opens or closes."""

    def run(self) -> None:
        """Raises ParentGone when the coordinator has left, FrameError when it speaks nonsense."""
        while True:
            while not self._core.num_queued:
                self._take(self._connection.next_message(None))
            while not self._core.is_full and self._take(self._connection.next_message(0.0)):
                pass
            self._step()

    def idle(self, until_s: float) -> None:
        """Return at until_s, on the child's clock, having heard what arrived.

        A model may call it in the middle of a step; see `_hear`. Raises as `run` does.
        """
        while (left_s := until_s - self._clock()) > 0:
            if self._is_deaf or left_s <= SOCKET_GRAIN_S:
                time.sleep(left_s)
            elif message := self._connection.next_message(left_s - SOCKET_GRAIN_S):
                self._hear(message)

    def hear_while(self, is_done: Callable[[], bool]) -> None:
        """Hear what arrives until a device has computed; implements `ports.WhileBusy`."""
        while not self._is_deaf and not is_done():
            if message := self._connection.next_message(0.0):
                self._hear(message)
            else:
                time.sleep(POLL_S)

    @property
    def _is_deaf(self) -> bool:
        """What arrives now has to wait in the socket."""
        return self._core.is_full or len(self._deferred) >= MAX_DEFERRED

    def _take(self, message: ToEngine | None) -> bool:
        if message is None:
            return False
        self._core.handle(message)
        for failure in self._core.take_failures():
            self._connection.send(failure)
        return True

    def _hear(self, message: ToEngine) -> None:
        """Take a message; during a step only what touches no model, the rest is set aside.

        What a step has bound is fixed, so trees and the queue may grow meanwhile, but a tree of a
        session that waits to be opened must wait with it.
        """
        if not self._is_stepping:
            self._take(message)
            return
        match message:
            case VerificationBatch():
                self._core.handle(message)
            case AddVertices() | DropSource() if message.session not in self._unsettled:
                self._core.handle(message)
            case OpenSession() | CloseSession() | AddVertices() | DropSource():
                self._unsettled.add(message.session)
                self._deferred.append(message)

    def _step(self) -> None:
        self._is_stepping = True
        *failures, done = self._core.step_next()
        self._is_stepping = False
        assert isinstance(done, StepDone)  # noqa: S101 - for the type checker
        self._unsettled.clear()
        while self._deferred:
            self._take(self._deferred.popleft())
        if self._step_floor_s and done.num_forward_rows:
            self.idle(done.started_s + self._step_floor_s)
            done = msgspec.structs.replace(done, ended_s=self._clock())
        if self._device is not None:
            done = with_tally(done, self._device.tally)
        self._connection.send(*failures, done)


def with_tally(done: StepDone, tally: PaddingTally) -> StepDone:
    return msgspec.structs.replace(
        done,
        num_padded=tally.num_forwards,
        num_late=tally.num_late,
        used_s=tally.used_s,
        padded_s=tally.padded_s,
    )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a child runs on, and what was measured of it."""

    models: EngineModels
    device: EmulatedDevice | None
    step: StepPrice
    level: StepPrice


def _load(settings: EngineSettings, load: LoadModels) -> _Loaded:
    """Raises ClearError, also where the first forwards find no memory left."""
    device = emulated_device(settings.emulate, settings.stretch)
    models = on_device(load(settings), device)
    step = measure_step(models.target, time.monotonic, settings.step_floor_s)
    level = NO_PRICE if models.draft is None else measure_level(models.draft, time.monotonic)
    return _Loaded(models, device, step, level)


def serve(
    sock: socket.socket,
    settings: EngineSettings,
    load: LoadModels,
    on_loaded: Callable[[], None] | None = None,
) -> int:
    """The child's life; returns its exit code.

    `on_loaded` is called when everything that stays is there.
    """
    connection = Connection(sock)
    try:
        try:
            loaded = _load(settings, load)
        except ClearError as error:
            connection.send(LoadFailed(str(error)))
            return 2
        models, device = loaded.models, loaded.device
        limits = EngineLimits(max_sessions=settings.max_sessions)
        core = EngineCore(models.target, time.monotonic, limits, models.draft)
        connection.send(core.ready(loaded.step, loaded.level))
        child = EngineChild(connection, core, settings.step_floor_s, device=device)
        if device is not None:
            device.tally.clear()
            device.idle = child.idle
        for model in (models.target, models.draft):
            if isinstance(model, BusyModel):
                model.while_busy = child.hear_while
        if on_loaded is not None:
            on_loaded()
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


def run_child(argv: list[str], load: LoadModels = load_models) -> int:
    """Main of the engine process; argv as made by `arguments`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to answer
    settings = msgspec.json.decode(argv[1], type=EngineSettings)
    with socket.socket(fileno=int(argv[0])) as sock:
        return serve(sock, settings, load, look_for_cycles_rarely)
