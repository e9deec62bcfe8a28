"""Which draft model: by gain, not by acceptance and not by speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.choice import Measured, Surroundings, choose

SMALL = Measured("small", 0.69, 0.006)
LARGE = Measured("large", 0.80, 0.012)
HUGE = Measured("huge", 0.85, 0.030)


def around(step_ms: float, trip_ms: float = 15) -> Surroundings:
    return Surroundings("the target", step_ms / 1000, trip_ms / 1000)


@pytest.mark.parametrize(("step_ms", "best"), [(12, "small"), (40, "large"), (300, "huge")])
def test_a_slower_engine_takes_a_larger_draft(step_ms: float, best: str) -> None:
    choice = choose([HUGE, LARGE, SMALL], around(step_ms))
    assert choice.best.name == best
    assert best in choice.why
    assert f"{step_ms:.1f} ms" in choice.why


def test_the_table_says_up_to_which_level_time_a_model_pays() -> None:
    rows = {row.measured.name: row for row in choose([SMALL, LARGE], around(40)).rows}
    large = rows["large"]
    assert large.break_even_s is not None
    assert 0.011 < large.break_even_s < 0.015
    (alone,) = choose([SMALL], around(40)).rows
    assert alone.break_even_s is None
    with pytest.raises(ValueError, match="no draft model"):
        choose([], around(40))


@pytest.mark.parametrize(
    ("level_ms", "step_ms", "trip_ms", "reason"),
    [(60, 40, 15, "sooner without help"), (10, 12, 500, "come too late")],
)
def test_what_adds_nothing_is_not_said_to_add_most(
    level_ms: float, step_ms: float, trip_ms: float, reason: str
) -> None:
    slow = Measured("slow", 0.8, level_ms / 1000)
    why = choose([slow], around(step_ms, trip_ms)).why
    assert why.startswith("drafting does not pay here")
    assert reason in why
    assert f"{level_ms:.1f} ms" in why
    assert f"{step_ms:.1f} ms" in why
    assert "adds most" not in why


measured = st.builds(
    Measured,
    name=st.sampled_from("abcdef"),
    acceptance=st.floats(0, 1),
    level_time_s=st.floats(0.001, 0.1),
)


@given(
    st.lists(measured, min_size=1, unique_by=lambda m: m.name), st.floats(1, 200), st.floats(0, 200)
)
def test_the_best_gains_most_and_lies_below_its_break_even(
    candidates: list[Measured], step_ms: float, trip_ms: float
) -> None:
    choice = choose(candidates, around(step_ms, trip_ms))
    assert {row.measured for row in choice.rows} == set(candidates)
    gains = [row.gain for row in choice.rows]
    assert gains == sorted(gains, reverse=True)
    first = choice.rows[0]
    assert choice == choose(candidates[::-1], around(step_ms, trip_ms))
    if first.break_even_s is not None and gains[0] > 1e-6:
        assert first.measured.level_time_s <= first.break_even_s * (1 + 1e-6) + 1e-9
