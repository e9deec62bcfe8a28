"""Widths and stops by a machine's own costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.growth import WIDTHS, GrowthControl
from node.level_times import LevelSample, LevelShape, LevelTimes

SHAPES = [(1, 1), (4, 1), (16, 1), (64, 1), (32, 4), (32, 8)]


def machine(fixed_ms: float, row_ms: float, session_ms: float = 0.0) -> LevelTimes:
    def sample(num_rows: int, num_sessions: int) -> LevelSample:
        time_ms = fixed_ms + row_ms * num_rows + session_ms * num_sessions
        return LevelSample(LevelShape(num_rows, num_sessions, 64 * num_sessions), time_ms / 1e3)

    return LevelTimes([sample(*shape) for shape in SHAPES])


@pytest.mark.parametrize("row_ms", [0.01, 0.02, 0.04])
@pytest.mark.parametrize(
    ("num_sessions", "width"), [(1, 16), (2, 16), (3, 16), (4, 8), (11, 8), (12, 4), (24, 4)]
)
def test_flat_levels_are_wide_as_long_as_few_sessions_share_them(
    row_ms: float, num_sessions: int, width: int
) -> None:
    control = GrowthControl(machine(6.0, row_ms))
    assert control.beam_width(num_sessions, 256 * num_sessions) == width


def test_a_machine_on_which_rows_cost_is_narrower() -> None:
    processor = GrowthControl(machine(1.0, 0.037))
    assert [processor.beam_width(n) for n in (1, 2, 4, 8)] == [8, 8, 4, 4]


def test_rows_that_cost_nothing_make_a_single_session_wider() -> None:
    assert GrowthControl(machine(6.0, 0.001)).beam_width(1) == 32


def test_before_anything_is_measured_the_widths_are_ordinary_ones() -> None:
    control = GrowthControl(LevelTimes())
    assert [control.beam_width(n) for n in (1, 3, 4, 12)] == [16, 16, 8, 4]
    assert control.least_row_prob(LevelShape(16, 1, 64)) == 0.0


@given(st.floats(0.1, 100), st.floats(0, 1), st.integers(1, 64))
def test_dearer_rows_and_more_sessions_never_widen(
    fixed_ms: float, row_ms: float, num_sessions: int
) -> None:
    cheap, dear = machine(fixed_ms, row_ms), machine(fixed_ms, 2 * row_ms + 0.01)
    width = GrowthControl(cheap).beam_width(num_sessions)
    assert width in WIDTHS
    assert GrowthControl(dear).beam_width(num_sessions) <= width
    assert GrowthControl(cheap).beam_width(num_sessions + 1) <= width
    shape = LevelShape(width * num_sessions, num_sessions, 0)
    probs = [GrowthControl(times).least_row_prob(shape) for times in (cheap, dear)]
    assert 0.0 <= probs[0] <= probs[1] < 0.5


def test_stops_can_be_switched_off() -> None:
    for has_early_stop in (True, False):
        control = GrowthControl(machine(1.0, 0.1), has_early_stop)
        assert (control.least_row_prob(LevelShape(16, 1, 64)) > 0.003) is has_early_stop
        assert control.is_worth_a_level(0.001, 2) is not has_early_stop
        assert control.is_worth_a_level(0.1, 2)
