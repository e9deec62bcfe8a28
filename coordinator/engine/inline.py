"""The engine inside the coordinator's own process, for virtual time: the same core, no thread."""

from collections.abc import Callable

import msgspec
import trio

from coordinator.engine.core import EngineCore
from coordinator.engine.mailbox import Letters, MailboxEngine
from coordinator.engine.measure import NO_PRICE, StepPrice
from coordinator.engine.messages import StepDone, ToEngine
from specedge_p2p.tasks import TaskStatus

StepCost = Callable[[int, int], float]
"""Seconds of a step by (rows of the forward, sequences in it)."""

LevelCost = Callable[[float], float]
"""Seconds of a level of the engine's own draft model by its rows."""


class InlineEngine(MailboxEngine):
    """Implements `ports.Engine` on trio's clock: a step sleeps for what it would have cost.

    Args:
        make_core: a fresh core, for the start and after every `crash`.
        step_cost: what a step takes; must be positive, or virtual time stands still.
        level_cost: what a level takes, for cores that draft by themselves.
        respawn_s: from a crash to the next `Ready`.
    """

    def __init__(
        self,
        make_core: Callable[[], EngineCore],
        step_cost: StepCost,
        level_cost: LevelCost | None = None,
        respawn_s: float = 0.5,
    ) -> None:
        super().__init__()
        self._make_core = make_core
        self._step_cost = step_cost
        self._level_cost = level_cost
        self._respawn_s = respawn_s
        self._life: trio.CancelScope | None = None

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
        await self._mailbox.deliver(core.ready(self._step_price(), self._level_price()))
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
        level_s = self._levels_cost(done.num_levels, done.num_level_rows)
        if done.num_forward_rows:  # a step whose sessions have all ended costs nothing
            step_s = self._step_cost(done.num_forward_rows, len(done.results))
            await trio.sleep(level_s + step_s)
        for failure in failures:
            await self._mailbox.deliver(failure)
        now = trio.current_time()
        await self._mailbox.deliver(msgspec.structs.replace(done, ended_s=now, level_s=level_s))

    def _step_price(self) -> StepPrice:
        one_row = self._step_cost(1, 1)
        return StepPrice(one_row, self._step_cost(2, 1) - one_row)

    def _level_price(self) -> StepPrice:
        if self._level_cost is None:
            return NO_PRICE
        one_row = self._level_cost(1)
        return StepPrice(one_row, self._level_cost(2) - one_row)

    def _levels_cost(self, num_levels: int, num_rows: int) -> float:
        """Seconds of a step's levels, taken to be of equal widths."""
        if self._level_cost is None or not num_levels:
            return 0.0
        return num_levels * self._level_cost(num_rows / num_levels)


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
