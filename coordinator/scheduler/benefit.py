"""What volunteers are worth, measured on live traffic: drafted sessions against holdouts.

A small random share of the sessions that volunteers could draft for is served without them
(`holdouts.py`). Both kinds sit in the same engine steps. Each step's time is split over its
sessions - rows by what rows cost, levels of the engine's own draft model by the rows that they
brought, all that is left equally - and both arms are compared by committed tokens per engine
second. The prompt, which costs the same with and without volunteers, is left out.

A session in a crowded step pays less of the fixed cost, so sessions are compared at equal load: in
strata by the number of sessions in the step, pooled as Mantel and Haenszel pool incidence rates
(J. Natl. Cancer Inst. 22, 1959; for person-time see Rothman and Boice, 1982). Its usual variance
takes every event for independent. Tokens are not: a session is easy or hard as a whole. So the
variance is that of sums over whole sessions, by the delta method (a sandwich estimator), and the
quantile is Student's with the holdouts' degrees of freedom, for they are the few.

What it does not see: a holdout shares its steps with sessions that have volunteers, where rows are
dearer and levels rarer than they would be in an engine by itself. So the figure is what volunteers
bring to a session in this network, not the speed of the network against one without any.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.engine.messages import EntryResult, StepDone
from coordinator.scheduler.costs import StepCosts

Arm = Literal["drafted", "holdout"]
"""The side of the comparison that a session stands on."""

NUM_STRATA = 13
"""Steps of 1, 2, 3-4, 5-8 ... 1025-2048 and more sessions."""
MIN_SESSIONS = 20
"""With fewer in either arm nothing is said."""
MIN_TOKENS = 1000
"""With fewer in either arm, in steps of sizes that both arms were in, nothing is said."""
MEMORY_SESSIONS = 20_000.0
"""Sessions of both arms after which an old one has lost two thirds of its weight."""

_Floats = NDArray[np.float64]
_DRAFTED, _HOLDOUT = 0, 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens per engine second of drafted sessions over those of holdouts, at equal load.

    Args:
        ratio: None while too little was seen; then low and high are None too.
        low, high: the 95 % confidence interval.
        num_drafted, num_holdouts: ended sessions compared; the effective number (Kish) once old
            ones lose weight.
    """

    ratio: float | None
    low: float | None
    high: float | None
    num_drafted: int
    num_holdouts: int


@dataclass(slots=True)
class _Use:
    """What a live session got and cost so far: tokens by stratum, then seconds by stratum."""

    arm: Arm
    figures: _Floats = field(default_factory=lambda: np.zeros(2 * NUM_STRATA))
    has_begun: bool = False


class Benefit:
    """Follows the sessions of both arms from step to step. Bounded by the live sessions."""

    def __init__(self, memory: float = MEMORY_SESSIONS) -> None:
        self._live: dict[int, _Use] = {}
        self._ended = Comparison(memory)

    def open(self, session: int, arm: Arm) -> None:
        self._live[session] = _Use(arm)

    def add_step(self, step: StepDone, costs: StepCosts) -> None:
        """Must be called before the sessions that end with this step are closed."""
        if not step.results:
            return
        at = stratum(len(step.results))
        for result, engine_s in zip(step.results, shares(step, costs), strict=True):
            use = self._live.get(result.session)
            if use is None or not result.token_ids:
                continue
            if use.has_begun:
                use.figures[at] += len(result.token_ids)
                use.figures[NUM_STRATA + at] += engine_s
            use.has_begun = True  # the first token comes from the prompt's forward

    def close(self, session: int) -> None:
        """The session has ended, however it did. Idempotent."""
        use = self._live.pop(session, None)
        if use is not None:
            self._ended.add(use.arm, use.figures)

    def estimate(self) -> Estimate:
        return self._ended.estimate()


def stratum(num_sessions: int) -> int:
    """Where steps with so many sessions are sorted in."""
    return min((num_sessions - 1).bit_length(), NUM_STRATA - 1)


def shares(step: StepDone, costs: StepCosts) -> tuple[float, ...]:
    """Engine seconds that each result's session is charged for a step, without prompt tokens.

    Where no prompt is prefilled the shares add up to the time that the step took.
    """
    num_sessions, num_rows = len(step.results), max(1, step.num_forward_rows)
    level_s = min(step.level_s, step.ended_s - step.started_s)
    forward_s = step.ended_s - step.started_s - level_s
    row_s = min(max(0.0, costs.row_time_s), forward_s / num_rows)
    fixed_s = forward_s - row_s * num_rows
    num_own_rows = sum(result.num_own_rows for result in step.results)

    def of(result: EntryResult) -> float:
        share = result.num_own_rows / num_own_rows if num_own_rows else 1 / num_sessions
        return fixed_s / num_sessions + row_s * (1 + result.num_rows) + level_s * share

    return tuple(map(of, step.results))


class Comparison:
    """Sums over ended sessions, enough for the ratio and its variance, however many there were.

    Args:
        memory: see MEMORY_SESSIONS.
    """

    def __init__(self, memory: float = MEMORY_SESSIONS) -> None:
        if not memory > 0:
            raise ValueError("a comparison needs a memory above 0")
        self._kept = math.exp(-1 / memory)
        self._sums = np.zeros((2, 2 * NUM_STRATA))
        self._products = np.zeros((2, 2 * NUM_STRATA, 2 * NUM_STRATA))
        """Sums over sessions of weight squared times the outer product of the session's figures."""
        self._weights = np.zeros(2)
        self._squared_weights = np.zeros(2)

    def add(self, arm: Arm, figures: _Floats) -> None:
        """A session has ended.

        Args:
            arm: its side.
            figures: float64 [2 * NUM_STRATA], tokens by stratum, then engine seconds by stratum.
        """
        if not figures.any():
            return  # it ended before its second token
        side = _HOLDOUT if arm == "holdout" else _DRAFTED
        self._sums *= self._kept
        self._weights *= self._kept
        self._products *= self._kept**2
        self._squared_weights *= self._kept**2
        self._sums[side] += figures
        self._products[side] += np.outer(figures, figures)
        self._weights[side] += 1.0
        self._squared_weights[side] += 1.0

    def estimate(self) -> Estimate:
        num_sessions = np.divide(
            self._weights**2,
            self._squared_weights,
            out=np.zeros(2),
            where=self._squared_weights > 0,
        )
        num_drafted, num_holdouts = (round(float(num)) for num in num_sessions)
        nothing = Estimate(None, None, None, num_drafted, num_holdouts)
        tokens, seconds = self._sums[:, :NUM_STRATA], self._sums[:, NUM_STRATA:]
        shared = (seconds > 0).all(axis=0)
        num_tokens = tokens[:, shared].sum(axis=1)
        if min(num_drafted, num_holdouts) < MIN_SESSIONS or num_tokens.min() < MIN_TOKENS:
            return nothing
        log_ratio, gradient = _pooled(np.where(shared, tokens, 0.0), np.where(shared, seconds, 0.0))
        variance = sum(
            max(0.0, float(g @ products @ g)) * num / (num - 1)  # rounding may fall below 0
            for g, products, num in zip(gradient, self._products, num_sessions, strict=True)
        )
        half_width = student_975(num_holdouts - 1) * math.sqrt(variance)
        ratio = math.exp(log_ratio)
        return Estimate(
            ratio,
            ratio * math.exp(-half_width),
            ratio * math.exp(half_width),
            num_drafted,
            num_holdouts,
        )


def student_975(degrees_of_freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, to 0.001 from 10 degrees of freedom on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z, n = 1.959964, degrees_of_freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _pooled(tokens: _Floats, seconds: _Floats) -> tuple[float, _Floats]:
    """Logarithm of the Mantel-Haenszel ratio of rates, and its gradient.

    Args:
        tokens: float64 [2, NUM_STRATA], drafted first; 0 in strata that only one arm was in.
        seconds: engine time, likewise.

    Returns:
        The logarithm, and float64 [2, 2 * NUM_STRATA]: the gradient by the tokens and seconds of
        each arm.
    """
    total = seconds.sum(axis=0)
    part = np.divide(seconds, total, out=np.zeros_like(seconds), where=total > 0)
    per_s = np.divide(tokens, total, out=np.zeros_like(tokens), where=total > 0)
    upper = float((tokens[_DRAFTED] * part[_HOLDOUT]).sum())
    lower = float((tokens[_HOLDOUT] * part[_DRAFTED]).sum())
    # d/dx of t1 c0 / (c1 + c0) over upper, and of t0 c1 / (c1 + c0) over lower.
    both = per_s[_DRAFTED] / upper, per_s[_HOLDOUT] / lower
    gradient = np.array(
        (
            np.concatenate((part[_HOLDOUT] / upper, -part[_HOLDOUT] * sum(both))),
            np.concatenate((-part[_DRAFTED] / lower, part[_DRAFTED] * sum(both))),
        )
    )
    return math.log(upper / lower), gradient
