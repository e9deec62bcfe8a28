import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.gain import break_even_level_s, predicted_gain

acceptances = st.floats(0.0, 1.0)
times = st.floats(0.0, 1.0)


@given(acceptances, times, times, times, times)
def test_better_guesses_and_shorter_ways_are_never_worth_less(
    acceptance: float, level_s: float, trip_s: float, step_s: float, more: float
) -> None:
    gain = predicted_gain(acceptance, level_s, trip_s, step_s)
    assert gain >= 0
    assert predicted_gain(min(1.0, acceptance + more), level_s, trip_s, step_s) >= gain
    assert predicted_gain(acceptance, level_s + more, trip_s, step_s) <= gain
    assert predicted_gain(acceptance, level_s, trip_s + more, step_s) <= gain
    assert predicted_gain(acceptance, level_s, trip_s, step_s + more) >= gain


@pytest.mark.parametrize(
    ("acceptance", "level_ms", "trip_ms", "step_ms", "tokens"),
    [
        (0.69, 6, 15, 40, 0.96),
        (0.69, 18, 15, 40, 0.42),
        (0.69, 6, 100, 40, 0.30),
        (0.80, 12, 15, 40, 1.04),
        (0.85, 6, 15, 40, 2.12),
        (0.69, 6, 15, 14, 0.28),
        (0.69, 6, 15, 94, 1.29),
        (0.80, 12, 15, 94, 2.26),
    ],
)
def test_the_simulated_networks_are_met(
    acceptance: float, level_ms: float, trip_ms: float, step_ms: float, tokens: float
) -> None:
    gain = predicted_gain(acceptance, level_ms / 1000, trip_ms / 1000, step_ms / 1000)
    assert gain == pytest.approx(tokens, abs=0.3)


@given(acceptances, st.floats(0.0, 3.0), st.floats(0.0, 0.1), st.floats(0.01, 0.1))
def test_at_break_even_a_model_brings_what_was_asked_for(
    acceptance: float, gain: float, trip_s: float, step_s: float
) -> None:
    level_s = break_even_level_s(acceptance, gain, trip_s, step_s)
    assert predicted_gain(acceptance, level_s + 1e-5, trip_s, step_s) <= gain or level_s > 9
    if level_s > 0:
        assert predicted_gain(acceptance, level_s, trip_s, step_s) >= gain


def test_a_slow_engine_bears_a_much_larger_model() -> None:
    def break_even_s(step_s: float) -> float:
        small = predicted_gain(0.69, 0.006, 0.015, step_s)
        return break_even_level_s(0.80, small, 0.015, step_s)

    assert break_even_s(0.094) > 0.02 > break_even_s(0.04) > 0.011
    assert break_even_s(0.014) < 0.01


def test_one_token_a_level_at_most_less_the_one_that_comes_without_a_node() -> None:
    assert predicted_gain(1.0, 0.025, 0.0, 0.1) == pytest.approx(3.0)


def test_a_model_that_is_always_right_but_no_quicker_than_the_engine_brings_nothing() -> None:
    assert predicted_gain(1.0, 0.014, 0.0, 0.014) == 0
    perfect = predicted_gain(1.0, 0.012, 0.015, 0.0143)
    assert perfect < predicted_gain(0.69, 0.006, 0.015, 0.0143)
