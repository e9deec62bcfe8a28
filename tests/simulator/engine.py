"""The engine in virtual time: the real core, whose steps take what a device's would."""

from collections.abc import Callable

import msgspec

from coordinator.engine.core import EngineCore
from coordinator.engine.measure import NO_PRICE, StepPrice
from coordinator.engine.messages import (
    EntryResult,
    FromEngine,
    OpenSession,
    Ready,
    StepDone,
    ToEngine,
)
from tests.simulator.events import Agenda
from tests.simulator.profiles import EngineCosts


class SimEngine:
    """A verdict is fixed when its step starts and told when it ends.

    Args:
        core: the real one.
        costs: of the device.
        tell: takes what the engine says.
        is_prefill_free: prompt rows and the tokens that they bring cost nothing.
        is_drafting: the core has a draft model of its own.
    """

    def __init__(
        self,
        core: EngineCore,
        agenda: Agenda,
        costs: EngineCosts,
        tell: Callable[[FromEngine], None],
        *,
        is_prefill_free: bool,
        is_drafting: bool,
    ) -> None:
        self._core, self._agenda, self._costs, self._tell = core, agenda, costs, tell
        self._is_prefill_free, self._is_drafting = is_prefill_free, is_drafting
        self._is_running = False
        self._first_positions: dict[int, int] = {}

    @property
    def core(self) -> EngineCore:
        return self._core

    def ready(self) -> Ready:
        costs = self._costs
        level = StepPrice(costs.levels_time_s(1, 1), costs.level_row_s)
        return self._core.ready(
            StepPrice(costs.step_time_s(1), costs.step_row_s),
            level if self._is_drafting else NO_PRICE,
        )

    def send(self, *messages: ToEngine) -> None:
        for message in messages:
            if isinstance(message, OpenSession):
                self._first_positions[message.session] = len(message.token_ids)
            self._core.handle(message)
        for failure in self._core.take_failures():
            self._tell(failure)
        if not self._is_running:
            self._next_step()

    def _next_step(self) -> None:
        if not self._core.num_queued:
            return
        *failures, done = self._core.step_next()
        assert isinstance(done, StepDone)
        for failure in failures:
            self._tell(failure)
        self._is_running = True
        done = self._billed(done)
        time_s = self._costs.step_time_s(done.num_forward_rows) + done.level_s
        self._agenda.after(time_s, lambda: self._end(done))

    def _end(self, done: StepDone) -> None:
        self._is_running = False
        self._next_step()  # the queue holds the next one: the device never waits for a result
        self._tell(msgspec.structs.replace(done, ended_s=self._agenda.now))

    def _billed(self, done: StepDone) -> StepDone:
        """With what is paid for."""
        num_free = done.num_prefill_rows if self._is_prefill_free else 0
        return msgspec.structs.replace(
            done,
            num_forward_rows=done.num_forward_rows - num_free,
            num_prefill_rows=done.num_prefill_rows - num_free,
            level_s=self._costs.levels_time_s(done.num_levels, done.num_level_rows),
        )

    def is_decoded(self, result: EntryResult) -> bool:
        """The tokens come from a step with a root, not from the end of the prompt."""
        first = self._first_positions.get(result.session, 0)
        return bool(result.token_ids) and result.from_position > first
