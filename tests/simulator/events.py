"""Virtual time: what happens when, and one direction of a link."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Action = Callable[[], None]


class Agenda:
    """Actions in the order of their time; of the same time, in the order in which they came."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Action]] = []
        self._num_added = 0

    def at(self, time_s: float, action: Action) -> None:
        """Raises ValueError for a time that is over."""
        if time_s < self.now:
            raise ValueError(f"{time_s} is over, it is {self.now}")
        self._num_added += 1
        heapq.heappush(self._heap, (time_s, self._num_added, action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now + delay_s, action)

    def run(self, is_over: Callable[[], bool]) -> None:
        """Until `is_over` or nothing is left to happen."""
        while self._heap and not is_over():
            self.now, _, action = heapq.heappop(self._heap)
            action()


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """What a link does to frames, the same in both directions.

    Args:
        round_trip_s: there and back.
        jitter: spread of the delay, as the sigma of a logarithmic normal.
        loss: share of frames that must be sent again, which takes a round trip and a fifth.
        churn_s: mean time between two breaks of the link, 0 for none.
        away_s: how long a break lasts in the mean.
    """

    round_trip_s: float = 0.015
    jitter: float = 0.0
    loss: float = 0.0
    churn_s: float = 0.0
    away_s: float = 1.0


class Pipe:
    """Frames in one direction: none overtakes another, none is lost for good."""

    def __init__(self, agenda: Agenda, quality: LinkQuality, random: Random) -> None:
        self._agenda, self._quality, self._random = agenda, quality, random
        self._last_s = 0.0
        self._cut = 0

    def send(self, action: Action) -> None:
        """`action` happens at the other end, unless the link breaks before."""
        quality = self._quality
        delay_s = quality.round_trip_s / 2
        if quality.jitter:
            delay_s *= math.exp(self._random.gauss(0.0, quality.jitter))
        if quality.loss and self._random.random() < quality.loss:
            delay_s += 1.2 * quality.round_trip_s
        self._last_s = max(self._last_s, self._agenda.now + delay_s)
        cut = self._cut

        def arrive() -> None:
            if self._cut == cut:
                action()

        self._agenda.at(self._last_s, arrive)

    def cut(self) -> None:
        """What is under way is lost."""
        self._cut += 1
