"""What the network did: totals since the start, the last seconds, and what volunteers bring."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.engine.messages import StepDone
from coordinator.padding import PaddingTotals
from coordinator.scheduler.benefit import Benefit
from coordinator.scheduler.costs import StepCosts
from coordinator.sessions import Committed, Session

WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class _Step:
    at_s: float
    num_tokens: int
    busy_s: float
    num_levels: int


class Load:
    """Totals since the start and sums over a sliding window."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s = clock()
        self._recent: deque[_Step] = deque()
        self.benefit = Benefit()
        self.num_holdouts = 0
        self.num_tokens = 0
        self.num_accepted = 0
        self.num_second = 0
        self.num_ngram = 0
        self.num_own = 0
        """Accepted and the last three: see Committed."""
        self.num_rounds = 0
        self.num_round_tokens = 0
        """Tokens committed in rounds, so without those that end a prefill."""
        self.num_steps = 0
        self.num_levels = 0
        self.num_level_rows = 0
        self.level_s = 0.0
        self.num_preempted = 0
        self.num_reused_rows = 0
        self.engine_s = 0.0
        self.padding = PaddingTotals()

    @property
    def uptime_s(self) -> float:
        return self._clock() - self._started_s

    @property
    def tokens_per_s(self) -> float:
        self._forget_old()
        return sum(step.num_tokens for step in self._recent) / self._window_s

    @property
    def engine_busy(self) -> float:
        self._forget_old()
        return min(1.0, sum(step.busy_s for step in self._recent) / self._window_s)

    @property
    def levels_per_step(self) -> float | None:
        self._forget_old()
        if not self._recent:
            return None
        return sum(step.num_levels for step in self._recent) / len(self._recent)

    @property
    def acceptance_length(self) -> float | None:
        return self.num_round_tokens / self.num_rounds if self.num_rounds else None

    def opened(self, session: Session) -> None:
        if session.arm is not None:
            self.num_holdouts += session.arm == "holdout"
            self.benefit.open(session.number, session.arm)

    def ended(self, session: Session) -> None:
        """Idempotent."""
        self.benefit.close(session.number)

    def charge(self, step: StepDone, costs: StepCosts) -> None:
        """Split a step's time over its sessions, before it is known which of them it ends."""
        self.benefit.add_step(step, costs)

    def add_step(self, step: StepDone, num_tokens: int) -> None:
        busy_s = step.ended_s - step.started_s
        self.num_steps += 1
        self.num_tokens += num_tokens
        self.num_levels += step.num_levels
        self.num_level_rows += step.num_level_rows
        self.level_s += step.level_s
        self.num_preempted += len(step.preempted)
        self.num_reused_rows += step.num_reused_rows
        self.engine_s += busy_s
        self.padding.add(step)
        self._recent.append(_Step(self._clock(), num_tokens, busy_s, step.num_levels))
        self._forget_old()

    def add_round(self, committed: Committed, *, is_first: bool) -> None:
        """Note what one session got of a step; the token that ends a prefill is no round."""
        self.num_accepted += sum(committed.accepted_by_source.values())
        self.num_second += committed.num_second
        self.num_ngram += committed.num_ngram
        self.num_own += committed.num_own
        if not is_first:
            self.num_rounds += 1
            self.num_round_tokens += len(committed.token_ids)

    @property
    def _window_s(self) -> float:
        return max(0.001, min(WINDOW_S, self.uptime_s))

    def _forget_old(self) -> None:
        oldest = self._clock() - WINDOW_S
        while self._recent and self._recent[0].at_s < oldest:
            self._recent.popleft()
