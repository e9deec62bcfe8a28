"""What a step and a level cost on this machine: measured once, when the models have been loaded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from specedge_p2p.lm.ports import LanguageModel, Rows, SamplingParams
from specedge_p2p.noise import KEY_BYTES

NUM_PREFIX_ROWS = 64
NUM_ROWS = (1, 8, 32)
NUM_REPEATS = 3
BRANCH_WIDTH = 8
"""Children that a level keeps of every row."""
_SEQUENCE = 0
"""Sessions are opened after the measurement, so any handle is free."""

Forward = Callable[[Rows], object]


@dataclass(frozen=True, slots=True)
class StepPrice:
    """A forward takes about step_time_s + (rows - 1) * row_time_s."""

    step_time_s: float
    row_time_s: float


NO_PRICE = StepPrice(0.0, 0.0)


def measure_step(
    model: LanguageModel, clock: Callable[[], float], step_floor_s: float = 0.0
) -> StepPrice:
    """Time the target's forwards of several widths on a short prefix and fit a line."""
    return _measure(model, clock, lambda rows: model.choose([rows]), step_floor_s)


def measure_level(model: LanguageModel, clock: Callable[[], float]) -> StepPrice:
    """The same for a draft model's forwards."""
    width = min(BRANCH_WIDTH, model.info.vocab_size)
    return _measure(model, clock, lambda rows: model.expand([rows], width), 0.0)


def _measure(
    model: LanguageModel, clock: Callable[[], float], forward: Forward, floor_s: float
) -> StepPrice:
    room = min(model.num_free_rows, model.info.max_context)
    num_prefix = min(NUM_PREFIX_ROWS, room // 2)
    widths = [n for n in NUM_ROWS if num_prefix + n <= room] or [1]
    model.add_sequence(_SEQUENCE, SamplingParams(temperature=0.0), bytes(KEY_BYTES))
    try:
        if num_prefix:
            forward(_rows(0, num_prefix, is_tail=False))
        times = []
        for width in widths:
            rows = _rows(num_prefix, width, is_tail=True)
            times.append(min(_time(model, clock, forward, rows) for _ in range(NUM_REPEATS)))
    finally:
        model.drop_sequence(_SEQUENCE)
    return fit(widths, [max(time, floor_s) for time in times])


def fit(num_rows: list[int], times_s: list[float]) -> StepPrice:
    """Least squares, neither part below zero."""
    if len(num_rows) == 1:
        return StepPrice(times_s[0], 0.0)
    slope, at_zero = np.polyfit(np.array(num_rows, float), np.array(times_s), 1)
    return StepPrice(max(float(at_zero + slope), min(times_s)), max(float(slope), 0.0))


def _time(model: LanguageModel, clock: Callable[[], float], forward: Forward, rows: Rows) -> float:
    started_s = clock()
    forward(rows)
    time_s = clock() - started_s
    model.compact(_SEQUENCE, ())
    return time_s


def _rows(first: int, num: int, is_tail: bool) -> Rows:
    """Rows of token 0: a chain in the tail, whose time is that of any tree, or prefix rows."""
    causal = np.tril(np.ones((num, num), dtype=np.uint64))
    shifts = np.arange(num, dtype=np.uint64)
    return Rows(
        sequence=_SEQUENCE,
        token_ids=np.zeros(num, dtype=np.int32),
        positions=np.arange(first, first + num, dtype=np.int32),
        visible=(causal << shifts).sum(axis=1, dtype=np.uint64)[:, None] if is_tail else None,
        num_outputs=num,
    )
