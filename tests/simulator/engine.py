"""The engine in virtual time: the real core, whose steps take what a device's would."""

from collections.abc import Callable

import msgspec

from coordinator.engine.core import EngineCore
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
    """

    def __init__(
        self,
        core: EngineCore,
        agenda: Agenda,
        costs: EngineCosts,
        tell: Callable[[FromEngine], None],
        *,
        is_prefill_free: bool,
    ) -> None:
        self._core, self._agenda, self._costs, self._tell = core, agenda, costs, tell
        self._is_prefill_free = is_prefill_free
        self._is_running = False
        self._first_positions: dict[int, int] = {}

    @property
    def core(self) -> EngineCore:
        return self._core

    def ready(self) -> Ready:
        one = self._costs.step_time_s(1)
        ready = self._core.ready(one, self._costs.step_row_s)
        return msgspec.structs.replace(
            ready,
            level_time_s=self._costs.levels_time_s(1, 1),
            level_row_time_s=self._costs.level_row_s,
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
        prefill_rows = done.num_forward_rows - sum(
            1 + result.num_rows for result in done.results if self.is_decoded(result)
        )
        num_first = sum(bool(r.token_ids) and not self.is_decoded(r) for r in done.results)
        saved = max(0, prefill_rows - num_first) if self._is_prefill_free else 0
        return msgspec.structs.replace(
            done,
            num_forward_rows=done.num_forward_rows - saved,
            num_prefill_rows=prefill_rows - saved,
            level_s=self._costs.levels_time_s(done.num_levels, done.num_level_rows),
        )

    def is_decoded(self, result: EntryResult) -> bool:
        """The tokens come from a step with a root, not from the end of the prompt."""
        first = self._first_positions.get(result.session, 0)
        return bool(result.token_ids) and result.from_position > first
