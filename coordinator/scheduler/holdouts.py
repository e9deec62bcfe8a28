"""Which sessions go without volunteers, so that it can be said what volunteers bring."""

from collections.abc import Callable


class Holdouts:
    """One session of each block of 1 / rate, at a random place in it; none of the first block.

    So a share of at most `rate` of all sessions is held out at every moment, never two fewer than
    that, and nobody can tell which ones.

    Args:
        rate: 0, for none, to 1.
        uniform: random numbers in [0, 1).
    """

    def __init__(self, rate: float, uniform: Callable[[], float]) -> None:
        if not 0 <= rate <= 1:
            raise ValueError("the share of sessions held out lies between 0 and 1")
        self._block_size = 1 / rate if rate else float("inf")
        self._uniform = uniform
        self._num_seen = 0
        self._num_blocks = 0
        self._chosen = self._draw()

    def takes_next(self) -> bool:
        """Whether the next session is held out."""
        self._num_seen += 1
        if self._num_seen <= self._chosen:
            return False
        self._chosen = self._draw()
        return True

    def _draw(self) -> float:
        """So many sessions, rounded down, come before the next one that is held out."""
        self._num_blocks += 1
        return (self._num_blocks + self._uniform()) * self._block_size
