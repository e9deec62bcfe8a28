"""Linear models of time, learned online.

A time is `speed * (c_0 x_0 + c_1 x_1 + ...)` with no coefficient below zero. The one number `speed`
follows quickly, so a device that throttles is believed within some twenty steps and every
coefficient with it; the coefficients follow slowly by least squares with exponential forgetting
(Ljung and Soderstrom, Theory and Practice of Recursive Identification, 1983, 2.6.2), on relative
errors, so that a rare long step weighs no more than a short one. A weak pull to the calibrated
coefficients never fades: where all steps have the same shape, the data cannot tell the coefficients
apart and the pull does. A single surprise is bounded as in Huber's estimator; one that repeats is
news and counts in full.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.float64]

_KEPT = 0.99
"""Weight of an observation after one more: the coefficients remember some hundred steps."""
_SPEED_GAIN = 0.12
"""Share of a surprise that is put down to the speed of the device."""
_SURPRISE = 1.25
"""A time this much longer or shorter than predicted is bounded, unless the last one was so too."""
_NEWS = 4.0
"""Bound of a surprise that repeats."""
_PULL = 0.0025
"""Weight of the pull to the calibration, per unit; data weigh 1 per step in the same measure."""
_LEAST = 1e-3
"""The constant coefficient never falls below this share of its unit."""
_TINY_S = 1e-9


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
        weight: float = 4.0,
    ) -> None:
        if not (len(prior_s) == len(units_s) and all(unit > 0 for unit in units_s)):
            raise ValueError("a time model needs a unit above 0 for each coefficient")
        self._units = np.array(units_s, dtype=np.float64)
        prior = np.maximum(np.array(prior_s, dtype=np.float64), 0.0) / self._units
        prior[0] = max(prior[0], _LEAST)
        self._speed = 1.0
        self._last_surprise = 0
        self._pull = np.eye(len(prior)) * _PULL
        self._pulled = prior * _PULL
        self._squares = np.zeros_like(self._pull)
        self._products = np.zeros_like(prior)
        self._coefficients = prior
        for features in measured:
            scaled = np.asarray(features, dtype=np.float64) * self._units
            scaled /= max(float(scaled @ prior), _TINY_S)
            self._squares += weight * np.outer(scaled, scaled)
            self._products += weight * scaled

    @property
    def coefficients_s(self) -> tuple[float, ...]:
        """Seconds per unit of each feature."""
        return tuple((self._speed * self._coefficients * self._units).tolist())

    def predict(self, features: Sequence[float]) -> float:
        """Seconds, above 0 for features of which the first is."""
        return self._speed * float(np.asarray(features) * self._units @ self._coefficients)

    def observe(self, features: Sequence[float], time_s: float) -> None:
        """What has these features took `time_s`; times of 0 come of a coarse clock and are left."""
        if not (0 < time_s < math.inf):
            return
        scaled = np.asarray(features, dtype=np.float64) * self._units
        expected = float(scaled @ self._coefficients)
        ratio = self._bounded(time_s / max(self._speed * expected, _TINY_S))
        adjustment = ratio**_SPEED_GAIN
        self._speed *= adjustment
        scaled /= expected
        self._squares = _KEPT * self._squares + np.outer(scaled, scaled)
        self._products = _KEPT * self._products + scaled * (ratio / adjustment)
        self._coefficients = _solve(self._squares + self._pull, self._products + self._pulled)

    def _bounded(self, ratio: float) -> float:
        surprise = (ratio > _SURPRISE) - (ratio < 1 / _SURPRISE)
        bound = _NEWS if surprise and surprise == self._last_surprise else _SURPRISE
        self._last_surprise = surprise
        return min(bound, max(1 / bound, ratio))


def _solve(squares: _Array, products: _Array) -> _Array:
    """Least squares without negative coefficients: the most negative is left out, and again."""
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
