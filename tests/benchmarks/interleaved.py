"""Times of several ways to do the same, taken in turns, so that a busy machine is busy for all."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Action = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Times:
    """Processor seconds of every repeat, by name; the i-th of all names stand side by side."""

    seconds: Mapping[str, list[float]]

    def median_s(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, against: str) -> float:
        """The median over the repeats of time over time."""
        return statistics.median(
            one / other
            for one, other in zip(self.seconds[name], self.seconds[against], strict=True)
        )

    def spread(self, name: str, against: str) -> float:
        """Half the distance between the quartiles of those ratios."""
        pairs = zip(self.seconds[name], self.seconds[against], strict=True)
        ratios = [one / other for one, other in pairs]
        if len(ratios) < 2:
            return 0.0
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return (high - low) / 2


def interleaved(
    actions: Mapping[str, Action], num_repeats: int, before: Action = lambda: None
) -> Times:
    """Run every action once to warm up, then all of them `num_repeats` times in turns.

    Times are of this thread's processor: what else the machine does counts little.

    Args:
        actions: by name.
        num_repeats: of each.
        before: runs before every turn, untimed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    before()
    for action in actions.values():
        action()
    gc.collect()
    gc.disable()
    try:
        for _ in range(num_repeats):
            before()
            for name, action in actions.items():
                begun = time.thread_time()
                action()
                seconds[name].append(time.thread_time() - begun)
    finally:
        gc.enable()
    return Times(seconds)
