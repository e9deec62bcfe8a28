"""What a step costs and what it brings, learned from what was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.engine.messages import NGRAM_ORDERS

LEAST_ROW_PRICE = 0.02
"""However cheap a row looked when the device was measured alone: it is never quite free."""
_BELIEF_GUESSES = 8.0
"""The initial rates weigh as much as this many guesses."""


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Fitted time of an engine step.

    Args:
        step_time_s: of a step with one row.
        row_time_s: of each further row.
    """

    step_time_s: float
    row_time_s: float

    def row_price(self, tokens_per_s: float) -> float:
        """Expected tokens that one more row must bring to be worth its time, 0 to 1.

        Args:
            tokens_per_s: committed tokens per second of engine time.
        """
        return min(1.0, max(LEAST_ROW_PRICE, tokens_per_s * self.row_time_s))


class Throughput:
    """Recent committed tokens per second of engine time.

    Only committed tokens count, so nobody's claims can raise it.

    Args:
        initial_per_s: what is believed before anything was measured.
        horizon_s: engine time after which a measurement has lost two thirds of its weight.
    """

    def __init__(self, initial_per_s: float, horizon_s: float = 5.0) -> None:
        if not (initial_per_s >= 0 and horizon_s > 0):
            raise ValueError("a throughput needs a rate of at least 0 and a horizon above 0")
        self._horizon_s = horizon_s
        self._time_s = horizon_s / 10  # the belief weighs as much as this much engine time
        self._num_tokens = initial_per_s * self._time_s

    @property
    def tokens_per_s(self) -> float:
        return self._num_tokens / self._time_s

    def observe(self, num_tokens: int, engine_s: float) -> None:
        """A step took `engine_s` and committed `num_tokens` over all its sessions."""
        if engine_s <= 0:
            return  # a clock too coarse for the step says nothing about its rate
        kept = math.exp(-engine_s / self._horizon_s)
        self._num_tokens = self._num_tokens * kept + num_tokens
        self._time_s = self._time_s * kept + engine_s


class NgramRates:
    """How often the first token of an n-gram guess is right, per order.

    Args:
        initial: what is believed before anything was seen, one per order of NGRAM_ORDERS.
        memory: guesses after which an observation has lost two thirds of its weight.
    """

    def __init__(self, initial: Sequence[float] = (0.6, 0.5, 0.3), memory: float = 500.0) -> None:
        beliefs = zip(NGRAM_ORDERS, initial, strict=True)
        self._hits = {order: rate * _BELIEF_GUESSES for order, rate in beliefs}
        self._tries = dict.fromkeys(NGRAM_ORDERS, _BELIEF_GUESSES)
        self._kept = math.exp(-1.0 / memory)

    @property
    def rates(self) -> tuple[float, ...]:
        """One per order of NGRAM_ORDERS."""
        return tuple(self._hits[order] / self._tries[order] for order in NGRAM_ORDERS)

    def observe(self, order: int, *, is_hit: bool) -> None:
        """One guess of this order was judged; order 0, no guess, is ignored."""
        if order == 0:
            return
        self._hits[order] = self._hits[order] * self._kept + is_hit
        self._tries[order] = self._tries[order] * self._kept + 1.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What planning a step needs to know, frozen at one moment.

    Args:
        step: see StepCosts.
        tokens_per_s: see Throughput.
        ngram_hit_rates: see NgramRates.
    """

    step: StepCosts
    tokens_per_s: float
    ngram_hit_rates: tuple[float, ...]

    @property
    def row_price(self) -> float:
        return self.step.row_price(self.tokens_per_s)
