"""The heart: plan -> verify -> publish.

Two tasks. One keeps the engine's queue filled, so that step n + 1 waits while step n runs; the
other takes the results, commits them and tells everyone. Neither ever waits for a volunteer.
"""

import math
from collections.abc import Callable, Sequence

import trio

from coordinator.accounting import Accounting
from coordinator.engine.messages import (
    CloseSession,
    EngineDied,
    EntryResult,
    OpenSession,
    Ready,
    SessionFailed,
    StepDone,
    ToEngine,
)
from coordinator.engine.ports import Engine
from coordinator.gateway.ports import Refused
from coordinator.leases import Leases
from coordinator.load import Load
from coordinator.lockstep import Gate
from coordinator.policy import StepPolicy
from coordinator.sessions import Session, Sessions

STEPS_IN_FLIGHT = 2
"""One that runs and one that waits."""

MAX_DEATHS = 4
"""Engines that may die on a session before it brings a token: fewer than an engine's supervisor
endures, so that a session which no engine survives is the only thing that it costs."""


class Rounds:
    def __init__(  # noqa: PLR0913 - the parts that a round touches
        self,
        engine: Engine,
        sessions: Sessions,
        leases: Leases,
        accounting: Accounting,
        policy: StepPolicy,
        load: Load,
        on_ready: Callable[[Ready], None],
        gate: Gate,
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._sessions, self._leases = engine, sessions, leases
        self._accounting, self._policy, self._load = accounting, policy, load
        self._on_ready = on_ready
        self._gate, self._clock = gate, clock
        self._outbox: list[ToEngine] = []
        self._num_in_flight = 0
        self._wake = trio.Event()

    async def run(self) -> None:
        """Serve sessions for ever. Raises EngineError when the engine cannot be brought back."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._plan_steps)
            nursery.start_soon(self._take_results)

    def open(self, session: Session) -> None:
        """Begin to serve a session."""
        self._sessions.add(session)
        self._load.opened(session)
        self._outbox.append(open_session(session))
        self._leases.rematch()
        self._wake.set()

    def close(self, session: Session, reason: str) -> None:
        """Stop serving a session; what is not committed never existed. Idempotent."""
        if self._sessions.remove(session):
            self._end(session, reason)
            self._wake.set()

    def proposed(self, source: int, base_position: int) -> None:
        """The engine has been handed a proposal of one of its sources."""
        if self._gate.proposed(source, base_position):
            self._wake.set()

    def fail_all(self, refused: Refused) -> None:
        """End every live session with an error."""
        for session in self._sessions:
            self._fail(session, refused)
        self._wake.set()

    # --- plan ------------------------------------------------------------------------------------

    async def _plan_steps(self) -> None:
        while True:
            messages = self._take_outbox()
            due = self._due() if self._has_room() else ()
            if due:
                batch = self._policy.plan(due, self._leases.sources)
                self._gate.planned(batch)
                self._num_in_flight += 1
                messages.append(batch)
            if messages:
                await self._engine.send(*messages)
            else:
                self._wake = trio.Event()
                with trio.move_on_after(self._patience_s()):
                    await self._wake.wait()

    def _due(self) -> Sequence[Session]:
        live = [session for session in self._sessions if session.is_live]
        return self._gate.due(self._clock(), live, self._leases.sources)

    def _patience_s(self) -> float:
        """How long to sleep unless something happens; for ever where no step could start."""
        return self._gate.patience_s(self._clock()) if self._has_room() else math.inf

    def _has_room(self) -> bool:
        return (
            self._engine.is_ready
            and self._num_in_flight < STEPS_IN_FLIGHT
            and any(session.is_live for session in self._sessions)
        )

    def _take_outbox(self) -> list[ToEngine]:
        messages = self._leases.engine_outbox + self._outbox
        self._leases.engine_outbox, self._outbox = [], []
        return messages

    # --- publish ---------------------------------------------------------------------------------

    async def _take_results(self) -> None:
        while True:
            match await self._engine.receive():
                case StepDone() as step:
                    self._publish(step)
                case SessionFailed(number, code, text):
                    session = self._sessions.get(number)
                    if session is not None:
                        self._fail(session, Refused(503, code, text, retry_after_s=1))
                case EngineDied():
                    self._num_in_flight = 0
                    self._gate.reset()
                    self._bury_the_deadly()
                case Ready() as ready:
                    self._begin_again(ready)
            self._wake.set()

    def _publish(self, step: StepDone) -> None:
        self._num_in_flight -= 1
        self._load.charge(step, self._policy.costs.step)
        self._leases.learn(step)
        self._gate.done(step.step_no)
        num_tokens = 0
        for result in step.results:
            session = self._sessions.get(result.session)
            if session is not None and session.is_live and result.token_ids:
                num_tokens += self._commit(session, result)
        self._policy.learn(step, num_tokens)
        self._load.add_step(step, num_tokens)

    def _commit(self, session: Session, result: EntryResult) -> int:
        committed = session.commit(result)
        self._leases.publish(session, committed)
        self._gate.committed(self._clock(), session)
        self._accounting.add(session, committed)
        self._load.add_round(committed, is_first=result.from_position == session.prompt_length)
        if session.finish is not None:
            self._end(session, session.finish)
        return len(committed.token_ids)

    def _fail(self, session: Session, refused: Refused) -> None:
        session.fail(refused)
        self._end(session, refused.code)

    def _end(self, session: Session, reason: str) -> None:
        """Free the engine and the nodes of a session, though its client may be reading still."""
        self._outbox.append(CloseSession(session.number))
        self._load.ended(session)
        self._policy.forget(session)
        self._leases.close(session, reason)
        self._leases.rematch()

    def _bury_the_deadly(self) -> None:
        for session in self._sessions:
            session.num_deaths += 1
            if session.is_live and session.num_deaths >= MAX_DEATHS:
                refused = Refused(503, "engine_failed", "the engine keeps failing on this")
                self._fail(session, refused)

    def _begin_again(self, ready: Ready) -> None:
        """An engine is there, the first or a respawned one: give it what is committed."""
        self._on_ready(ready)
        self._policy.calibrate(ready)
        self._outbox = [open_session(session) for session in self._sessions if session.is_live]
        self._leases.engine_outbox.clear()
        self._leases.restart_trees()


def open_session(session: Session) -> OpenSession:
    """What an engine is told of a session, fresh or after a crash."""
    return OpenSession(
        session=session.number,
        token_ids=list(session.token_ids),
        prompt_length=session.prompt_length,
        max_tokens=session.max_tokens,
        sampling=session.request.sampling,
        noise_key=session.noise_key,
        ignore_eos=session.request.ignore_eos,
        prefix_salt=session.request.key_id,
    )
