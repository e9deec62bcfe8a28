"""What a level takes on this machine: predicted from a few probes, learned on from real levels.

A linear model of (rows, sessions, cached rows), fitted by least squares to a handful of measured
points, as MAPLE-Edge (arXiv 2204.12950) adapts a latency predictor to a new device. Real levels
have nearly the same shape one after the other, so that they alone would say nothing about other
shapes: the probes keep a weight that never fades, and what they measured is scaled by how much
slower the machine has become since.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ROWS_SCALE, _CONTEXT_SCALE = 16.0, 1024.0
"""So that all terms of the model are of one size."""
_PROBES_WEIGHT = 4.0
"""All probes together count as many levels."""
_KEPT = 0.97
"""Of a level's weight after each further one: after about thirty, most is forgotten."""
_MOST_SURPRISE = 4.0
"""A level counts as at most this many times the prediction: a stall says nothing about the rest."""
_SOLVE_EVERY = 8
_RIDGE = np.array([1e-6, 1e-4, 1e-4, 1e-4])
_LEAST_S = 1e-6

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LevelShape:
    """What a level does.

    Args:
        num_rows: vertices that are expanded, over all sessions.
        num_sessions: sessions that they belong to.
        num_context_rows: cached rows of these sessions.
    """

    num_rows: int
    num_sessions: int
    num_context_rows: int


@dataclass(frozen=True, slots=True)
class LevelSample:
    shape: LevelShape
    level_time_s: float


class LevelTimes:
    """See the head of this file. Without probes the first levels teach it all.

    Args:
        probes: measured before the first level.
    """

    def __init__(self, probes: Iterable[LevelSample] = ()) -> None:
        self._matrix = np.zeros((4, 4))
        self._moments = np.zeros(4)
        probes = tuple(probes)
        for probe in probes:
            terms = _terms(probe.shape)
            weight = _PROBES_WEIGHT / len(probes)
            self._matrix += weight * np.outer(terms, terms)
            self._moments += weight * terms * probe.level_time_s
        self._recent_matrix = np.zeros((4, 4))
        self._seen_s = self._foreseen_s = 0.0  # recent levels: measured, and by the probes alone
        self._recent_moments = np.zeros(4)
        self._num_observed = 0
        self._is_known = bool(probes)
        self._probed = self._solve(self._matrix, self._moments)
        self._coefficients_s: list[float] = self._probed.tolist()

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return self._is_known

    @property
    def row_time_s(self) -> float:
        """What one more row adds."""
        return self._coefficients_s[1] / _ROWS_SCALE

    def predict(self, shape: LevelShape) -> float:
        """Seconds, above 0."""
        fixed_s, rows_s, sessions_s, context_s = self._coefficients_s
        return max(
            _LEAST_S,
            fixed_s
            + rows_s * (shape.num_rows / _ROWS_SCALE)
            + sessions_s * shape.num_sessions
            + context_s * (shape.num_context_rows / _CONTEXT_SCALE),
        )

    def observe(self, shape: LevelShape, level_time_s: float) -> None:
        """A level of this shape took so long."""
        if self._is_known:
            level_time_s = min(level_time_s, _MOST_SURPRISE * self.predict(shape))
        terms = _terms(shape)
        self._recent_matrix *= _KEPT
        self._recent_matrix += np.outer(terms, terms)
        self._recent_moments *= _KEPT
        self._recent_moments += level_time_s * terms
        self._seen_s = _KEPT * self._seen_s + level_time_s
        self._foreseen_s = _KEPT * self._foreseen_s + float(self._probed @ terms)
        self._num_observed += 1
        if self._num_observed % _SOLVE_EVERY == 0 or not self._is_known:
            self._is_known = True
            slowness = self._seen_s / self._foreseen_s if self._foreseen_s > 0 else 1.0
            solution = self._solve(
                self._matrix + self._recent_matrix,
                slowness * self._moments + self._recent_moments,
            )
            self._coefficients_s = solution.tolist()

    @staticmethod
    def _solve(matrix: Matrix, moments: Vector) -> Vector:
        """Least squares without negative terms: the most negative one is left out, and again."""
        matrix = matrix.copy()
        # Where all shapes were alike, time is taken for fixed rather than for that of their rows.
        matrix.flat[::5] += max(1.0, float(matrix[0, 0])) * _RIDGE
        kept = [0, 1, 2, 3]
        solution = np.zeros(4)
        while kept:
            solution[:] = 0.0
            solution[kept] = np.linalg.solve(matrix[np.ix_(kept, kept)], moments[kept])
            lowest = int(np.argmin(solution))
            if solution[lowest] >= 0:
                break
            kept.remove(lowest)
        return solution


def _terms(shape: LevelShape) -> Vector:
    return np.array(
        [
            1.0,
            shape.num_rows / _ROWS_SCALE,
            float(shape.num_sessions),
            shape.num_context_rows / _CONTEXT_SCALE,
        ]
    )
