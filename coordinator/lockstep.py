"""Lock-step rounds at the coordinator: which sessions the next step takes, and whether it starts.

A setting for measuring, beside continuous drafting. A session that nodes draft for is planned when
a proposal based on its present last token is here, and not again before that step's result is
known. The wait has a bound: a node that does not propose in time is not waited for until it
proposes again, and its session is served plain meanwhile.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from coordinator.engine.messages import SourceFactor, VerificationBatch
from coordinator.sessions import Session
from coordinator.settings import Lockstep

Sources = Callable[[Session], list[SourceFactor]]


class Gate:
    """Lets every session through: continuous drafting waits for nobody."""

    def due(self, now: float, live: Sequence[Session], sources: Sources) -> Sequence[Session]:
        """The sessions to plan now; none: no step starts now."""
        return live

    def patience_s(self, now: float) -> float:
        """How long from now until `due` may answer differently by itself."""
        return math.inf

    def proposed(self, source: int, base_position: int) -> bool:
        """A proposal is at the engine; whether a step may start because of it."""
        return False

    def planned(self, batch: VerificationBatch) -> None: ...

    def done(self, step_no: int) -> None: ...

    def committed(self, now: float, session: Session) -> None: ...

    def reset(self) -> None:
        """The engine lost its steps and all that nodes had proposed."""


class LockstepGate(Gate):
    """See the head of this file."""

    def __init__(self, lockstep: Lockstep) -> None:
        self._lockstep = lockstep
        self._steps: dict[int, frozenset[int]] = {}  # in flight: step_no -> sessions
        self._since_s: dict[int, float] = {}  # by session: since when it could have a proposal
        self._proposed: dict[int, int] = {}  # by source: base position of its last proposal
        self._late: set[int] = set()  # sources that are not waited for
        self._next_s = math.inf

    def due(self, now: float, live: Sequence[Session], sources: Sources) -> Sequence[Session]:
        active = {s.number: {factor.source for factor in sources(s)} for s in live}
        self._forget_all_but(active)
        self._next_s = math.inf
        ready = [s for s in live if self._is_ready(now, s, active[s.number])]
        # Everybody who is not ready may still become so: a verdict or a proposal is on its way.
        is_enough = len(ready) >= self._lockstep.min_batch or len(ready) == len(live)
        return ready if is_enough else ()

    def patience_s(self, now: float) -> float:
        return max(0.0, self._next_s - now)

    def proposed(self, source: int, base_position: int) -> bool:
        self._proposed[source] = base_position
        self._late.discard(source)
        return True

    def planned(self, batch: VerificationBatch) -> None:
        self._steps[batch.step_no] = frozenset(entry.session for entry in batch.entries)

    def done(self, step_no: int) -> None:
        self._steps.pop(step_no, None)

    def committed(self, now: float, session: Session) -> None:
        self._since_s[session.number] = now

    def reset(self) -> None:
        self._steps.clear()
        self._since_s.clear()
        self._proposed.clear()

    def _is_ready(self, now: float, session: Session, active: set[int]) -> bool:
        since_s = self._since_s.setdefault(session.number, now)
        waited_for = active - self._late
        if not session.num_tokens or not waited_for:
            return True  # a prompt is read without proposals, and so is what nobody drafts for
        if any(session.number in step for step in self._steps.values()):
            return False
        position = len(session.token_ids)
        if any(self._proposed.get(source) == position for source in waited_for):
            return True
        until_s = since_s + self._lockstep.wait_s
        if now < until_s:
            self._next_s = min(self._next_s, until_s)
            return False
        self._late |= waited_for
        return True

    def _forget_all_but(self, active: Mapping[int, set[int]]) -> None:
        known = frozenset[int]().union(*active.values())
        self._late &= known
        self._proposed = {source: at for source, at in self._proposed.items() if source in known}
        self._since_s = {number: at for number, at in self._since_s.items() if number in active}


def make_gate(lockstep: Lockstep | None) -> Gate:
    return Gate() if lockstep is None else LockstepGate(lockstep)
