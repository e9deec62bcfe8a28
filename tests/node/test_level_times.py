"""Level times: learned from probes, kept up with drift, unharmed by stalls and sameness."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.level_times import LevelSample, LevelShape, LevelTimes

PROBES = [
    (1, 1, 64),
    (4, 1, 64),
    (16, 1, 64),
    (64, 1, 64),
    (32, 4, 256),
    (32, 8, 512),
    (16, 1, 512),
]


def true_time_s(shape: LevelShape, slowness: float = 1.0) -> float:
    context_s = 2e-6 * shape.num_context_rows
    return slowness * (0.006 + 2e-5 * shape.num_rows + 1e-4 * shape.num_sessions + context_s)


def probed(slowness: float = 1.0) -> LevelTimes:
    shapes = [LevelShape(*shape) for shape in PROBES]
    return LevelTimes([LevelSample(shape, true_time_s(shape, slowness)) for shape in shapes])


@given(st.integers(1, 256), st.integers(1, 16), st.integers(0, 8000))
def test_probes_predict_other_shapes(rows: int, sessions: int, context: int) -> None:
    shape = LevelShape(rows, sessions, context)
    assert probed().predict(shape) == pytest.approx(true_time_s(shape), rel=0.05)


def test_a_machine_that_becomes_slower_is_learned_in_fifty_levels() -> None:
    times = probed()
    shape, other = LevelShape(64, 4, 1000), LevelShape(16, 1, 300)
    for _ in range(50):
        times.observe(shape, true_time_s(shape, 2.0))
    assert times.predict(shape) == pytest.approx(true_time_s(shape, 2.0), rel=0.1)
    assert times.predict(other) > 1.4 * true_time_s(other)
    for _ in range(100):
        times.observe(shape, true_time_s(shape, 1.0))
    assert times.predict(shape) == pytest.approx(true_time_s(shape), rel=0.1)


def test_levels_of_one_shape_leave_the_others_sane() -> None:
    times = probed()
    shape = LevelShape(16, 1, 300)
    for _ in range(1000):
        times.observe(shape, true_time_s(shape))
    for other in (LevelShape(1, 1, 64), LevelShape(64, 1, 300), LevelShape(64, 8, 2400)):
        assert times.predict(other) == pytest.approx(true_time_s(other), rel=0.25)


def test_a_stall_is_forgiven() -> None:
    times = probed()
    shape = LevelShape(16, 1, 300)
    for _ in range(40):
        times.observe(shape, true_time_s(shape))
    times.observe(shape, 5.0)
    for _ in range(8):
        times.observe(shape, true_time_s(shape))
    assert times.predict(shape) < 1.2 * true_time_s(shape)


def test_without_probes_the_first_level_is_believed() -> None:
    times = LevelTimes()
    assert not times.is_known
    times.observe(LevelShape(16, 1, 64), 0.01)
    assert times.is_known
    assert times.predict(LevelShape(16, 1, 64)) == pytest.approx(0.01, rel=0.05)


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 8), st.floats(1e-5, 1.0)), max_size=40)
)
def test_predictions_are_positive_and_never_fall_with_more_work(
    levels: list[tuple[int, int, float]],
) -> None:
    times = probed()
    for rows, sessions, seconds in levels:
        times.observe(LevelShape(rows, sessions, 64 * sessions), seconds)
    small, large = LevelShape(1, 1, 1), LevelShape(100, 4, 4000)
    assert 0 < times.predict(small) <= times.predict(large)
    assert times.row_time_s >= 0
