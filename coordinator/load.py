"""What the network did in the last seconds: tokens, accepted tokens, engine time."""

from collections import deque
from collections.abc import Callable

from coordinator.engine.messages import StepDone
from coordinator.padding import PaddingTotals
from coordinator.sessions import Committed

WINDOW_S = 10.0


class Load:
    """Totals since the start and sums over a sliding window."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s = clock()
        self._recent: deque[tuple[float, int, float]] = deque()
        self.num_tokens = 0
        self.num_accepted = 0
        self.num_rounds = 0
        self.num_round_tokens = 0
        """Tokens committed in rounds, so without those that end a prefill."""
        self.num_steps = 0
        self.engine_s = 0.0
        self.padding = PaddingTotals()

    @property
    def uptime_s(self) -> float:
        return self._clock() - self._started_s

    @property
    def tokens_per_s(self) -> float:
        self._forget_old()
        return sum(tokens for _, tokens, _ in self._recent) / self._window_s

    @property
    def engine_busy(self) -> float:
        self._forget_old()
        return min(1.0, sum(busy for _, _, busy in self._recent) / self._window_s)

    @property
    def acceptance_length(self) -> float | None:
        return self.num_round_tokens / self.num_rounds if self.num_rounds else None

    def add_step(self, step: StepDone, num_tokens: int) -> None:
        busy_s = step.ended_s - step.started_s
        self.num_steps += 1
        self.num_tokens += num_tokens
        self.engine_s += busy_s
        self.padding.add(step)
        self._recent.append((self._clock(), num_tokens, busy_s))
        self._forget_old()

    def add_round(self, committed: Committed, *, is_first: bool) -> None:
        """Note what one session got of a step; the token that ends a prefill is no round."""
        self.num_accepted += sum(committed.accepted_by_source.values())
        if not is_first:
            self.num_rounds += 1
            self.num_round_tokens += len(committed.token_ids)

    @property
    def _window_s(self) -> float:
        return max(0.001, min(WINDOW_S, self.uptime_s))

    def _forget_old(self) -> None:
        oldest = self._clock() - WINDOW_S
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()
