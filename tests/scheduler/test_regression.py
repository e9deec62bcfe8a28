"""Times are learned whatever the device does and however alike its steps are."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.costs import LevelCosts, LevelTimes, StepCosts, StepTimes
from coordinator.scheduler.regression import TimeModel

A100 = StepCosts(0.040, 0.00008, 0.0001, 2e-8)
H200 = StepCosts(0.014, 0.000034, 0.0003, 3e-8)
CPU = StepCosts(0.008, 0.0008, 0.0005, 1e-7)
USUAL = (32, 8, 8000)


def slower(costs: StepCosts, times: float) -> StepCosts:
    return StepCosts(
        times * costs.step_time_s,
        times * costs.row_time_s,
        times * costs.sequence_time_s,
        times * costs.context_time_s,
    )


def run(times: StepTimes, truth: StepCosts, num_steps: int, rng: random.Random) -> None:
    """Steps of a varying load, now and then with a prompt, measured with 5 % of noise."""
    for _ in range(num_steps):
        num_sessions = rng.randint(1, 12)
        num_rows = num_sessions * rng.randint(1, 6) + rng.choice([0] * 9 + [256])
        shape = (num_rows, num_sessions, num_sessions * rng.randint(100, 2000))
        times.observe(*shape, truth.predict(*shape) * rng.lognormvariate(0, 0.05))


def off(times: StepTimes, truth: StepCosts, shape: tuple[int, int, int] = USUAL) -> float:
    return abs(times.costs.predict(*shape) / truth.predict(*shape) - 1)


@pytest.mark.parametrize(
    ("calibrated", "truth"),
    [
        (StepCosts(0.040, 0.0001), A100),
        (StepCosts(0.014, 0.0), H200),  # the calibration was too short to see what a row costs
        (StepCosts(0.004, 0.0004), CPU),  # and this one saw the device idle
    ],
)
def test_coefficients_are_found(calibrated: StepCosts, truth: StepCosts) -> None:
    times = StepTimes(calibrated)
    run(times, truth, 300, random.Random(1))
    assert off(times, truth) < 0.05
    assert off(times, truth, (4, 4, 400)) < 0.08
    assert off(times, truth, (300, 8, 8000)) < 0.08
    assert times.costs.row_time_s == pytest.approx(truth.row_time_s, rel=0.2)


@pytest.mark.parametrize("truth", [A100, H200, CPU])
@pytest.mark.parametrize("times_as_slow", [2.0, 0.5])
def test_a_device_that_drifts_is_followed_within_30_steps(
    truth: StepCosts, times_as_slow: float
) -> None:
    times, rng = StepTimes(truth), random.Random(2)
    run(times, truth, 300, rng)
    changed = slower(truth, times_as_slow)
    run(times, changed, 30, rng)
    assert off(times, changed) < 0.08
    assert times.costs.row_time_s == pytest.approx(changed.row_time_s, rel=0.3)


def test_a_burst_of_prompts_does_not_spoil_what_is_known_of_decoding() -> None:
    """Nothing told the model what rows cost before, so all steps of the burst surprise it."""
    times = StepTimes(StepCosts(0.014, 0.0))
    for num_rows in [24] * 100 + [536] * 20:
        times.observe(num_rows, 8, 8000, H200.predict(num_rows, 8, 8000))
    assert off(times, H200, (24, 8, 8000)) < 0.3
    assert off(times, H200, (536, 8, 8000)) < 0.01
    for _ in range(10):
        times.observe(24, 8, 8000, H200.predict(24, 8, 8000))
    assert off(times, H200, (24, 8, 8000)) < 0.1
    assert off(times, H200, (536, 8, 8000)) < 0.2


@pytest.mark.parametrize("factor", [50.0, 0.01])
def test_one_outlier_moves_little(factor: float) -> None:
    times = StepTimes(A100)
    run(times, A100, 100, random.Random(3))
    before = times.costs
    times.observe(*USUAL, factor * A100.predict(*USUAL))
    assert times.costs.predict(*USUAL) == pytest.approx(before.predict(*USUAL), rel=0.05)
    assert times.costs.row_time_s == pytest.approx(before.row_time_s, rel=0.1)


@given(
    times_as_slow=st.floats(0.4, 2.5),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 32), st.integers(0, 50_000)),
)
def test_steps_of_one_shape_leave_the_proportions(
    times_as_slow: float, shape: tuple[int, int, int]
) -> None:
    """They cannot tell the coefficients apart, so what was calibrated stays in proportion."""
    times = StepTimes(A100)
    truth = slower(A100, times_as_slow)
    for _ in range(200):
        times.observe(*shape, truth.predict(*shape))
    assert off(times, truth, shape) < 0.01
    for other in ((1, 1, 0), USUAL, (300, 8, 8000)):
        assert off(times, truth, other) < 0.6
    assert 0.1 < times.costs.row_time_s / truth.row_time_s < 5.0


@given(
    st.lists(
        st.tuples(
            st.integers(1, 5000),
            st.integers(0, 64),
            st.integers(0, 1_000_000),
            st.one_of(st.floats(-1.0, 1e4), st.sampled_from([float("nan"), float("inf"), 1e-12])),
        ),
        max_size=40,
    )
)
def test_whatever_is_measured_costs_stay_finite_and_never_negative(
    steps: list[tuple[int, int, int, float]],
) -> None:
    times = StepTimes(StepCosts(0.0, 0.0))
    for step in steps:
        times.observe(*step)
    costs = times.costs
    assert 0 < costs.step_time_s < 1e6
    for found in (costs.row_time_s, costs.sequence_time_s, costs.context_time_s):
        assert 0 <= found < 1e6


def test_levels_are_learned_from_sums_over_a_step() -> None:
    times, rng = LevelTimes(LevelCosts(0.004, 0.0)), random.Random(4)
    assert times.costs.level_time_s == pytest.approx(0.004, rel=0.01)
    for _ in range(300):
        num_levels, num_rows = rng.randint(1, 3), rng.randint(8, 96)
        noise = rng.lognormvariate(0, 0.03)
        level_s = (0.008 - 0.000012) * num_levels + 0.000012 * num_rows
        times.observe(num_levels, num_rows, level_s * noise)
    assert times.costs.level_time_s == pytest.approx(0.008, rel=0.05)
    assert times.costs.level_row_time_s == pytest.approx(0.000012, rel=0.6)


def test_a_level_that_looked_too_dear_for_a_moment_is_tried_again() -> None:
    times = LevelTimes(LevelCosts(0.003, 0.00004))
    for _ in range(30):
        times.observe(1, 4, 0.012)  # the device was busy with something else
    assert times.costs.level_time_s > 0.008
    for _ in range(200):  # nothing is measured, because it looks too dear
        times.fade()
    assert times.costs.level_time_s == pytest.approx(0.003, rel=0.1)


@pytest.mark.parametrize("units", [(1.0, 0.0), (1.0,), (-1.0, 1.0)])
def test_senseless_units_are_refused(units: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="unit"):
        TimeModel((1.0, 1.0), units, [])


def test_a_model_predicts_from_what_it_was_given() -> None:
    model = TimeModel((0.01, 0.001), (0.01, 0.001), [(1.0, 0.0), (1.0, 7.0)])
    assert model.predict((1.0, 10.0)) == pytest.approx(0.02)
