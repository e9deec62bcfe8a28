"""The coordinator in virtual time: rounds, with the real policy, leases and matching.

It does what `coordinator/rounds.py` does, without its two tasks: step n + 1 is planned while step
n runs, results are committed and published when they come.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from coordinator.engine.messages import (
    CloseSession,
    EntryResult,
    FromEngine,
    Ready,
    SessionFailed,
    StepDone,
    ToEngine,
)
from coordinator.gateway.ports import GenerationRequest
from coordinator.lease import vertices_of
from coordinator.leases import Leases
from coordinator.lockstep import make_gate
from coordinator.policy import StepPolicy
from coordinator.rounds import STEPS_IN_FLIGHT, open_session
from coordinator.scheduler.factors import Factors
from coordinator.sessions import Committed, Session, Sessions
from coordinator.settings import Lockstep
from specedge_p2p.names import SessionId
from specedge_p2p.wire.messages import GrowthWishes, Proposal, Resume, Welcome
from tests.simulator.events import Agenda
from tests.simulator.models import MAX_CONTEXT
from tests.simulator.node import WiredLink, welcome
from tests.simulator.traces import Trace

LEASE_S = 30.0


class NodeEnd(Protocol):
    """A node as whoever connects it sees it."""

    link: WiredLink | None
    resumes: Sequence[Resume]

    def connect(self, welcome: Welcome) -> WiredLink: ...

    def disconnect(self) -> None: ...


class NoText:
    """Nobody reads what is generated."""

    def push(self, token_id: int) -> tuple[str, bool]:
        return "", False

    def finish(self) -> tuple[str, bool]:
        return "", False


class EngineLike(Protocol):
    """An engine in virtual time."""

    def ready(self) -> Ready: ...

    def send(self, *messages: ToEngine) -> None: ...

    def is_decoded(self, result: EntryResult) -> bool: ...


class SimCoordinator:
    """Serves sessions for ever.

    Args:
        policy: the real one; it is calibrated in `start`.
        factors: what is believed of nodes, shared with the policy.
        vocab_size: of the recorded pair.
        lockstep: rounds in lock-step instead of continuous drafting.
        on_commit, on_step, on_end: called with what happened, for figures and the next session.
    """

    def __init__(
        self,
        agenda: Agenda,
        policy: StepPolicy,
        factors: Factors,
        vocab_size: int,
        on_commit: Callable[[Session, Committed], None],
        on_step: Callable[[StepDone], None],
        on_end: Callable[[Session], None],
        lockstep: Lockstep | None = None,
    ) -> None:
        self._agenda, self._policy = agenda, policy
        self._welcome = welcome(vocab_size)
        self._on_commit, self._on_step, self._on_end = on_commit, on_step, on_end
        self.sessions = Sessions(max_sessions=1 << 20)
        self._gate = make_gate(lockstep)
        self._next_look_s = math.inf
        self.leases = Leases(
            self.sessions,
            frozenset(),
            lambda: agenda.now,
            LEASE_S,
            GrowthWishes() if lockstep is None else lockstep.wishes,
            factors,
        )
        self.leases.max_context = MAX_CONTEXT
        self._outbox: list[ToEngine] = []
        self._num_in_flight = 0
        self._engine: EngineLike | None = None
        self.num_proposals = 0
        self.num_proposed = 0

    @property
    def engine(self) -> EngineLike:
        assert self._engine is not None
        return self._engine

    def start(self, engine: EngineLike) -> None:
        self._engine = engine
        self._policy.calibrate(engine.ready())

    # --- sessions and nodes ----------------------------------------------------------------------

    def open(self, trace: Trace, volunteers: bool) -> Session:
        number = self.sessions.next_number()
        request = GenerationRequest(
            model="recorded",
            prompt_ids=trace.prompt_ids,
            sampling=trace.sampling,
            seed=trace.seed,
            max_tokens=trace.num_new,
            volunteers="any" if volunteers else "none",
            ignore_eos=True,
        )
        session = Session(
            number=number,
            session_id=SessionId(f"session-{number}"),
            request=request,
            noise_key=trace.key,
            max_tokens=trace.num_new,
            text=NoText(),
            opened_s=self._agenda.now,
        )
        self.sessions.add(session)
        self._outbox.append(open_session(session))
        self.leases.rematch()
        return session

    def join(self, *nodes: NodeEnd) -> None:
        """They come, all at once, and go on with what they had."""
        for node in nodes:
            link = node.connect(self._welcome)
            self.leases.join(link)
            for message in node.resumes:
                self.leases.resume(link, message)
        self.leases.rematch()
        self.pump()

    def leave(self, node: NodeEnd) -> None:
        """The node's link broke, and both ends know."""
        if node.link is not None:
            self.leases.leave(node.link)
            node.disconnect()
            self.leases.rematch()
            self.pump()

    def propose(self, link: WiredLink, proposal: Proposal) -> None:
        """What a node sent has arrived; it goes on to the engine at once."""
        lease = self.leases.accept(link, proposal)
        if lease is None:
            return
        self.num_proposals += 1
        self.num_proposed += len(proposal.log_probs)
        self.engine.send(vertices_of(lease, proposal))
        if self._gate.proposed(lease.source, proposal.base_position):
            self.pump()

    # --- rounds ----------------------------------------------------------------------------------

    def pump(self) -> None:
        """Keep the engine's queue filled."""
        messages = self.leases.engine_outbox + self._outbox
        self.leases.engine_outbox, self._outbox = [], []
        if messages:
            self.engine.send(*messages)
        while self._num_in_flight < STEPS_IN_FLIGHT:
            live = [session for session in self.sessions if session.is_live]
            due = self._gate.due(self._agenda.now, live, self.leases.sources)
            if not due:
                self._look_again(self._gate.patience_s(self._agenda.now))
                return
            batch = self._policy.plan(due, self.leases.sources)
            self._gate.planned(batch)
            self._num_in_flight += 1
            self.engine.send(batch)

    def _look_again(self, wait_s: float) -> None:
        """A session that waits for a proposal in lock-step does not wait for ever."""
        at_s = self._agenda.now + wait_s
        if self._agenda.now < self._next_look_s <= at_s or math.isinf(at_s):
            return
        self._next_look_s = at_s
        self._agenda.at(at_s, self.pump)

    def hear(self, message: FromEngine) -> None:
        match message:
            case StepDone() as step:
                self._publish(step)
                self.pump()
            case SessionFailed(number, code, text):
                raise AssertionError(f"session {number} failed: {code}: {text}")
            case _:
                raise AssertionError(f"unexpected {message}")

    def _publish(self, step: StepDone) -> None:
        self._num_in_flight -= 1
        self.leases.learn(step)
        self._gate.done(step.step_no)
        num_tokens = 0
        for result in step.results:
            session = self.sessions.get(result.session)
            if session is not None and session.is_live and result.token_ids:
                num_tokens += self._commit(session, result)
        self._policy.learn(step, num_tokens)
        self._on_step(step)

    def _commit(self, session: Session, result: EntryResult) -> int:
        committed = session.commit(result)
        session._guessed.clear()
        self.leases.publish(session, committed)
        self._gate.committed(self._agenda.now, session)
        self._on_commit(session, committed)
        if session.finish is not None:
            self._outbox.append(CloseSession(session.number))
            self.leases.close(session, session.finish)
            self._policy.forget(session)
            self.sessions.remove(session)
            self._on_end(session)
            self.leases.rematch()
        return len(committed.token_ids)
