"""The engine inside the coordinator's own process, for virtual time: the same core, no thread."""

from collections.abc import Callable

import msgspec
import trio

from coordinator.engine.core import EngineCore
from coordinator.engine.mailbox import Letters, Mailbox
from coordinator.engine.messages import FromEngine, StepDone, ToEngine
from specedge_p2p.tasks import TaskStatus

StepCost = Callable[[int, int], float]
"""Seconds of a step by (rows of the forward, sequences in it)."""


class InlineEngine:
    """Implements `ports.Engine` on trio's clock: a step sleeps for what it would have cost.

    Args:
        make_core: a fresh core, for the start and after every `crash`.
        step_cost: what a step takes; must be positive, or virtual time stands still.
        respawn_s: from a crash to the next `Ready`.
    """

    def __init__(
        self, make_core: Callable[[], EngineCore], step_cost: StepCost, respawn_s: float = 0.5
    ) -> None:
        self._make_core = make_core
        self._step_cost = step_cost
        self._respawn_s = respawn_s
        self._mailbox = Mailbox()
        self._life: trio.CancelScope | None = None

    @property
    def is_ready(self) -> bool:
        return self._mailbox.is_ready

    @property
    def num_restarts(self) -> int:
        return self._mailbox.num_restarts

    async def send(self, *messages: ToEngine) -> None:
        await self._mailbox.send(*messages)

    async def receive(self) -> FromEngine:
        return await self._mailbox.receive()

    def crash(self) -> None:
        """Lose everything, as a killed process would; the engine comes back by itself."""
        if self._life is not None:
            self._life.cancel()
            self._mailbox.close_inbox()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live, crash and live again until cancelled."""
        task_status.started(None)
        try:
            while True:
                with trio.CancelScope() as self._life:
                    await self._live(self._mailbox.begin())
                self._life = None
                await self._mailbox.end("the engine was told to crash")
                await trio.sleep(self._respawn_s)
        finally:
            self._mailbox.give_up("the engine was stopped")

    async def _live(self, inbox: trio.MemoryReceiveChannel[Letters]) -> None:
        core = self._make_core()
        one_row = self._step_cost(1, 1)
        await self._mailbox.deliver(core.ready(one_row, self._step_cost(2, 1) - one_row))
        waiting: list[ToEngine] = []
        while True:
            if not core.num_queued and not waiting:
                waiting += await inbox.receive()
            _drain(core, inbox, waiting)
            for failure in core.take_failures():
                await self._mailbox.deliver(failure)
            if core.num_queued:
                await self._step(core)

    async def _step(self, core: EngineCore) -> None:
        """The verdict is fixed when the step starts and told when it ends."""
        *failures, done = core.step_next()
        assert isinstance(done, StepDone)  # noqa: S101 - tells the type checker what step_next says
        if done.num_forward_rows:  # a step whose sessions have all ended costs nothing
            await trio.sleep(self._step_cost(done.num_forward_rows, len(done.results)))
        for failure in failures:
            await self._mailbox.deliver(failure)
        await self._mailbox.deliver(msgspec.structs.replace(done, ended_s=trio.current_time()))


def _drain(
    core: EngineCore, inbox: trio.MemoryReceiveChannel[Letters], waiting: list[ToEngine]
) -> None:
    """Hand over what has arrived, in order, until there is no more or a batch finds no room."""
    while not core.is_full:
        if not waiting:
            try:
                waiting += inbox.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return
        else:
            core.handle(waiting.pop(0))
