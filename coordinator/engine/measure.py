"""What a step costs on this machine: measured once, when the model has been loaded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from specedge_p2p.lm.ports import LanguageModel, Rows, SamplingParams
from specedge_p2p.noise import KEY_BYTES

NUM_PREFIX_ROWS = 64
NUM_ROWS = (1, 8, 32)
NUM_REPEATS = 3
_SEQUENCE = 0
"""Sessions are opened after the measurement, so any handle is free."""


@dataclass(frozen=True, slots=True)
class StepPrice:
    """A step takes about step_time_s + (rows - 1) * row_time_s."""

    step_time_s: float
    row_time_s: float


def measure_step(
    model: LanguageModel, clock: Callable[[], float], step_floor_s: float = 0.0
) -> StepPrice:
    """Time forwards of several widths on a short prefix, best of a few, and fit a line."""
    room = min(model.num_free_rows, model.info.max_context)
    num_prefix = min(NUM_PREFIX_ROWS, room // 2)
    widths = [n for n in NUM_ROWS if num_prefix + n <= room] or [1]
    model.add_sequence(_SEQUENCE, SamplingParams(temperature=0.0), bytes(KEY_BYTES))
    try:
        if num_prefix:
            model.choose([_rows(0, num_prefix, is_tail=False)])
        times = [_best_time(model, clock, num_prefix, width) for width in widths]
    finally:
        model.drop_sequence(_SEQUENCE)
    return fit(widths, [max(time, step_floor_s) for time in times])


def fit(num_rows: list[int], times_s: list[float]) -> StepPrice:
    """Least squares, neither part below zero."""
    if len(num_rows) == 1:
        return StepPrice(times_s[0], 0.0)
    slope, at_zero = np.polyfit(np.array(num_rows, float), np.array(times_s), 1)
    return StepPrice(max(float(at_zero + slope), min(times_s)), max(float(slope), 0.0))


def _best_time(
    model: LanguageModel, clock: Callable[[], float], num_prefix: int, width: int
) -> float:
    times = []
    for _ in range(NUM_REPEATS):
        started_s = clock()
        model.choose([_rows(num_prefix, width, is_tail=True)])
        times.append(clock() - started_s)
        model.compact(_SEQUENCE, ())
    return min(times)


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
