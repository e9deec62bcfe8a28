"""What a step costs and what it brings, learned from what was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.engine.messages import NGRAM_ORDERS
from coordinator.scheduler.regression import TimeModel

LEAST_ROW_PRICE = 0.003
"""However cheap a row looked when the device was measured alone: it is never quite free."""
_BELIEF_GUESSES = 8.0
"""The initial rates weigh as much as this many guesses."""
_SHAPE_KEPT = 0.95
"""How much of the usual shape of a step is kept when another one was seen."""
_TINY_S = 1e-6
_BELIEF_STEPS = 3
_BELIEF_TOKENS = 20.0
"""What levels bring is believed to be what is expected until about so many tokens say otherwise."""
_WORTH_KEPT = 0.99
_MOST_WORTH = 1.2
_CALIBRATED_ROWS = (1, 8, 32)
"""Widths that an engine measures when it starts."""


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Fitted time of an engine step without its own drafting.

    Args:
        step_time_s: of a step with one row and no context.
        row_time_s: of each further row, of trees or of prompts.
        sequence_time_s: of each further sequence.
        context_time_s: of each cached row that the step attends to.
    """

    step_time_s: float
    row_time_s: float
    sequence_time_s: float = 0.0
    context_time_s: float = 0.0

    def predict(
        self, num_rows: float, num_sequences: float = 1.0, num_context_rows: float = 0.0
    ) -> float:
        """Seconds of a step with at least one row."""
        return (
            self.step_time_s
            + max(0.0, num_rows - 1) * self.row_time_s
            + max(0.0, num_sequences - 1) * self.sequence_time_s
            + num_context_rows * self.context_time_s
        )

    def row_price(self, tokens_per_s: float) -> float:
        """Expected tokens that one more row must bring to be worth its time, 0 to 1.

        Args:
            tokens_per_s: committed tokens per second of engine time.
        """
        return min(1.0, max(LEAST_ROW_PRICE, tokens_per_s * self.row_time_s))


@dataclass(frozen=True, slots=True)
class LevelCosts:
    """Fitted time of a level of the engine's own draft model: with one row, each further row."""

    level_time_s: float
    level_row_time_s: float


class StepTimes:
    """Learns StepCosts from the steps that were run.

    Args:
        calibrated: what the engine measured when it started.
    """

    def __init__(self, calibrated: StepCosts) -> None:
        whole = max(calibrated.step_time_s, _TINY_S)
        self._model = TimeModel(
            prior_s=(
                whole,
                calibrated.row_time_s,
                calibrated.sequence_time_s,
                calibrated.context_time_s,
            ),
            # Doubts where nothing was calibrated: a row may well cost 1/400 of a step, a sequence
            # 1/100, a cached row 1/200,000.
            units_s=(whole, max(calibrated.row_time_s, whole / 400), whole / 100, whole / 200_000),
            measured=[(1.0, rows - 1.0, 0.0, 0.0) for rows in _CALIBRATED_ROWS],
        )

    @property
    def costs(self) -> StepCosts:
        return StepCosts(*self._model.coefficients_s)

    def observe(
        self, num_rows: int, num_sequences: int, num_context_rows: int, time_s: float
    ) -> None:
        """A step with at least one row took `time_s`, the levels of its own drafting left out."""
        features = (1.0, num_rows - 1.0, max(0.0, num_sequences - 1.0), float(num_context_rows))
        self._model.observe(features, time_s)


class LevelTimes:
    """Learns LevelCosts from the levels that an engine's own draft model ran.

    Args:
        calibrated: what the engine measured when it started.
    """

    def __init__(self, calibrated: LevelCosts) -> None:
        whole = max(calibrated.level_time_s, _TINY_S)
        self._model = TimeModel(
            prior_s=(whole, calibrated.level_row_time_s),
            units_s=(whole, max(calibrated.level_row_time_s, whole / 400)),
            measured=[(1.0, rows - 1.0) for rows in _CALIBRATED_ROWS],
        )

    @property
    def costs(self) -> LevelCosts:
        return LevelCosts(*self._model.coefficients_s)

    def observe(self, num_levels: int, num_rows: int, time_s: float) -> None:
        """The levels of one step, at least one, took `time_s` together."""
        rows_each = num_rows / num_levels
        self._model.observe((1.0, max(0.0, rows_each - 1.0)), time_s / num_levels)

    def fade(self) -> None:
        """A step had no level: in time one is tried again."""
        self._model.fade()


class LevelWorth:
    """Learns what the engine's own levels bring, per token that was expected of them.

    What is expected follows the draft model's probabilities. How much of it comes true depends on
    what else is known of the same tokens, on how many children are too improbable to be verified,
    and on the lead that a node's tree loses: so it is measured.
    """

    def __init__(self) -> None:
        self._expected = self._brought = _BELIEF_TOKENS

    @property
    def value(self) -> float:
        return min(_MOST_WORTH, self._brought / self._expected)

    def observe(self, expected: float, num_brought: int) -> None:
        """A step's levels were expected to bring so many tokens, and brought so many."""
        self._expected = _WORTH_KEPT * self._expected + expected
        self._brought = _WORTH_KEPT * self._brought + num_brought

    def fade(self) -> None:
        """A step had no level: in time one is tried again."""
        self._expected += (1 - _WORTH_KEPT) * (_BELIEF_TOKENS - self._expected)
        self._brought += (1 - _WORTH_KEPT) * (_BELIEF_TOKENS - self._brought)


class StepShape:
    """What a decoding session usually brings to a step."""

    def __init__(self) -> None:
        self.rows_per_session = 1.0
        self.context_per_session = 0.0

    def observe(self, num_rows: int, num_context_rows: int, num_sessions: int) -> None:
        """A step verified `num_rows` rows of `num_sessions` decoding sessions."""
        if num_sessions < 1:
            return
        new = 1.0 - _SHAPE_KEPT
        rows, context = num_rows / num_sessions, num_context_rows / num_sessions
        self.rows_per_session += new * (max(1.0, rows) - self.rows_per_session)
        self.context_per_session += new * (context - self.context_per_session)


class Throughput:
    """Recent committed tokens per second of engine time.

    Only committed tokens count, so nobody's claims can raise it.

    Args:
        initial_per_s: what is believed before anything was measured.
        memory: steps after which a measurement has lost two thirds of its weight. Steps, not
            seconds: the load that a belief holds for changes within some steps on any device.
    """

    def __init__(self, initial_per_s: float, memory: float = 30.0) -> None:
        if not (initial_per_s >= 0 and memory > 0):
            raise ValueError("a throughput needs a rate of at least 0 and a memory above 0")
        self._kept = math.exp(-1.0 / memory)
        self._initial_per_s = initial_per_s
        self._num_tokens = self._time_s = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self._num_tokens / self._time_s if self._time_s else self._initial_per_s

    def observe(self, num_tokens: int, engine_s: float) -> None:
        """A step took `engine_s` and committed `num_tokens` over all its sessions."""
        if engine_s <= 0:
            return  # a clock too coarse for the step says nothing about its rate
        if not self._time_s:  # the belief counts like a few steps
            self._time_s = _BELIEF_STEPS * engine_s
            self._num_tokens = self._initial_per_s * self._time_s
        self._num_tokens = self._num_tokens * self._kept + num_tokens
        self._time_s = self._time_s * self._kept + engine_s


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
        level: see LevelCosts; None where the engine has no draft model.
        level_worth: see LevelWorth.
        own_factor, own_draft, own_quality: of that draft model, see factors.py.
        rows_per_session, context_per_session: see StepShape.
    """

    step: StepCosts
    tokens_per_s: float
    ngram_hit_rates: tuple[float, ...]
    level: LevelCosts | None = None
    level_worth: float = 1.0
    own_factor: float = 1.0
    own_draft: int = 0
    own_quality: float = 0.0
    rows_per_session: float = 1.0
    context_per_session: float = 0.0

    @property
    def row_price(self) -> float:
        return self.step.row_price(self.tokens_per_s)

    def decode_time_s(self, num_sessions: int) -> float:
        """Predicted step of `num_sessions` decoding sessions, without prompts and levels."""
        return self.step.predict(
            num_sessions * self.rows_per_session,
            num_sessions,
            num_sessions * self.context_per_session,
        )
