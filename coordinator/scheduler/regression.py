"""Linear models of time, learned online: time = c_0 x_0 + c_1 x_1 + ..., no coefficient below zero.

Least squares with exponential forgetting (Ljung and Soderstrom, Theory and Practice of Recursive
Identification, 1983), on relative errors, so that a rare long step weighs no more than a short one,
with three additions:

- A share of every deviation is put down to the speed of the device, most of it where a surprise
  repeats, and all that was learned is scaled by it: a device that throttles is followed within some
  twenty steps without the proportions of its coefficients, learned over some hundred, being lost.
- A weak pull to the calibrated proportions never fades. Where all steps have the same shape the
  data cannot tell the coefficients apart, and the pull does.
- One surprise is bounded as in Huber's estimator; one that repeats is news and counts in full.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.float64]

_KEPT = 0.99
_KEPT_AT_NEWS = 0.5
"""What was seen before the device changed says less of it."""
_FADED = 0.02
_SPEED_SHARE = 0.12
_SPEED_SHARE_OF_NEWS = 0.6
_SURPRISE = 1.25
"""A time this much longer or shorter than predicted is bounded, unless the last one was so too."""
_NEWS = 4.0
"""Bound of a surprise that repeats."""
_REST_OF_NEWS = 1.05
"""A change has been taken in when a time lies this close to what is predicted."""
_PULL = 0.01
"""Weight of the pull, per unit and relative to a step: as if units were 10 times the noise."""
_LEAST = 1e-3
"""The constant coefficient never falls below this share of its unit."""


class TimeModel:
    """See the head of this file.

    Args:
        prior_s: calibrated coefficients in seconds, the constant one first.
        units_s: per coefficient, seconds by which it may well be wrong.
        measured: features of the calibration's own measurements; each counts like `weight` steps.
    """

    def __init__(
        self,
        prior_s: Sequence[float],
        units_s: Sequence[float],
        measured: Sequence[Sequence[float]],
        weight: float = 1.0,
    ) -> None:
        if not (len(prior_s) == len(units_s) and all(unit > 0 for unit in units_s)):
            raise ValueError("a time model needs a unit above 0 for each coefficient")
        self._units = np.array(units_s, dtype=np.float64)
        self._prior = np.maximum(np.array(prior_s, dtype=np.float64), 0.0) / self._units
        self._prior[0] = max(self._prior[0], _LEAST)
        self._coefficients = self._prior
        self._last_surprise = 0
        self._was_news = False
        self._squares = np.zeros((len(self._prior), len(self._prior)))
        self._products = np.zeros_like(self._prior)
        for features in measured:
            scaled = np.asarray(features, dtype=np.float64) * self._units
            scaled /= float(scaled @ self._prior)
            self._squares += weight * np.outer(scaled, scaled)
            self._products += weight * scaled
        self._calibrated = self._squares.copy(), self._products.copy()

    @property
    def coefficients_s(self) -> tuple[float, ...]:
        """Seconds per unit of each feature."""
        return tuple((self._coefficients * self._units).tolist())

    def predict(self, features: Sequence[float]) -> float:
        """Seconds."""
        return float(np.asarray(features) * self._units @ self._coefficients)

    def observe(self, features: Sequence[float], time_s: float) -> None:
        """What has these features took `time_s`; 0 comes of a coarse clock and says nothing.

        Args:
            features: the first one is 1, none is negative.
            time_s: as measured.
        """
        if not (0 < time_s < math.inf):
            return
        scaled = np.asarray(features, dtype=np.float64) * self._units
        expected_s = float(scaled @ self._coefficients)
        ratio = time_s / expected_s
        is_news = self._is_news(ratio)
        bound = _NEWS if is_news else _SURPRISE
        ratio = min(bound, max(1 / bound, ratio))
        # All that was seen, as it would have been at the speed of now.
        speed = ratio ** (_SPEED_SHARE_OF_NEWS if is_news else _SPEED_SHARE)
        kept = _KEPT_AT_NEWS if is_news else _KEPT
        self._squares *= kept / speed**2
        self._products *= kept / speed
        scaled /= expected_s
        self._squares += np.outer(scaled, scaled)
        self._products += scaled * ratio
        self._coefficients = self._solved()

    def fade(self) -> None:
        """A step without a measurement: the calibration counts a little more again.

        What looks too dear is not done, so without this a time that was once measured on a device
        that was busy for a moment would be believed for ever.
        """
        squares, products = self._calibrated
        self._squares = (1 - _FADED) * self._squares + _FADED * squares
        self._products = (1 - _FADED) * self._products + _FADED * products
        self._coefficients = self._solved()

    def _is_news(self, ratio: float) -> bool:
        """Whether the last time was surprising too, in the same direction."""
        limit = _REST_OF_NEWS if self._was_news else _SURPRISE
        surprise = (ratio > limit) - (ratio < 1 / limit)
        self._was_news = surprise != 0 and surprise == self._last_surprise
        self._last_surprise = surprise
        return self._was_news

    def _solved(self) -> _Array:
        prior = self._prior
        # How many times as slow as calibrated the device is, judged by its proportions alone.
        speed = float(prior @ self._products) / float(prior @ self._squares @ prior)
        pull = _PULL / speed**2
        squares = self._squares + pull * np.eye(len(prior))
        return _least_squares(squares, self._products + pull * speed * prior)


def _least_squares(squares: _Array, products: _Array) -> _Array:
    """Without negative coefficients: the most negative one is left out, and again."""
    free = list(range(len(products)))
    solution = np.zeros_like(products)
    while True:
        found = np.linalg.solve(squares[np.ix_(free, free)], products[free])
        worst = int(np.argmin(found))
        if found[worst] >= 0:
            break
        del free[worst]
    solution[free] = found
    solution[0] = max(solution[0], _LEAST)
    return solution
