"""How wide a level is and which rows of it are worth their time, by this machine's own costs."""

import math
from dataclasses import dataclass

from node.level_times import LevelShape, LevelTimes

WIDTHS = (4, 8, 16, 32)
_WORTH = {4: 0.92, 8: 0.97, 16: 1.0, 32: 1.003}
"""Tokens per step with this beam width against 16, at equal level time, in simulations on recorded
acceptance. For 32 they say 1.01, within their noise, and it sends twice as much: it must be as good
as free."""
_LEVEL_TIME_ELASTICITY = 0.184
"""Levels twice as long bring 12 % fewer tokens: 2 ** -0.184."""
_TOKENS_PER_ROUND = 2.5
_LEAST_LEVEL_PROB = 0.01
"""Expected tokens per session below which a level is not run: a verdict that comes meanwhile would
wait for its end, and that costs more."""


@dataclass(frozen=True, slots=True)
class GrowthControl:
    """Decides on levels.

    Args:
        times: what levels take here.
        has_early_stop: whether rows that are too improbable for their time are left out.
    """

    times: LevelTimes
    has_early_stop: bool = True

    def beam_width(self, num_sessions: int, num_context_rows: int = 0) -> int:
        """Vertices of one session per level.

        Args:
            num_sessions: sessions that share the level.
            num_context_rows: cached rows of all of them.
        """
        widths = [width for width in WIDTHS if width <= _widest(num_sessions)]
        if not self.times.is_known:
            return min(widths[-1], 16)
        return max(widths, key=lambda width: self._score(width, num_sessions, num_context_rows))

    def least_row_prob(self, shape: LevelShape) -> float:
        """Path probability below which expanding a vertex costs more than it brings.

        An uncertainty stop in the manner of EdgeBERT (arXiv 2011.14203), with the threshold taken
        from the machine: a row makes the level longer by row_time_s, and so all rounds poorer.
        """
        if not (self.has_early_stop and self.times.is_known):
            return 0.0
        share = self.times.row_time_s / self.times.predict(shape)
        return min(1.0, _LEVEL_TIME_ELASTICITY * _TOKENS_PER_ROUND * share)

    def is_worth_a_level(self, sum_probs: float, num_sessions: int) -> bool:
        """Whether vertices with these path probabilities are worth a forward of their own."""
        return not self.has_early_stop or sum_probs >= _LEAST_LEVEL_PROB * num_sessions

    def _score(self, width: int, num_sessions: int, num_context_rows: int) -> float:
        shape = LevelShape(width * num_sessions, num_sessions, num_context_rows)
        level_time_s = self.times.predict(shape)
        return math.log(_WORTH[width]) - _LEVEL_TIME_ELASTICITY * math.log(level_time_s)


def _widest(num_sessions: int) -> int:
    """Wider levels with many sessions lost in simulation even where rows were nearly free."""
    if num_sessions >= 12:
        return 4
    return 8 if num_sessions >= 4 else WIDTHS[-1]
