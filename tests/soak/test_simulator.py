"""The simulator's long runs: a thousand drawn worlds, all measured cells, ablations."""

import pytest

from tests.simulator.ablations import ablations
from tests.simulator.floor import LEAST_MEAN, judge_all, mean_ratio
from tests.simulator.measured import MOST_ERROR, compare_all
from tests.simulator.traces import demo_book

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def test_law3_the_floor_holds_in_a_thousand_drawn_worlds() -> None:
    judged = judge_all(range(1000), demo_book())
    assert [str(one) for one in judged if one.is_broken] == []
    assert mean_ratio(judged) >= LEAST_MEAN


def test_the_simulator_is_right_about_every_measured_cell() -> None:
    compared = list(compare_all(demo_book()))
    assert len(compared) > 30
    assert [str(one) for one in compared if abs(one.error) > MOST_ERROR] == []


def test_ideas_of_the_policy_are_worth_what_they_should() -> None:
    checks = ablations(demo_book(), num_tokens=9216)
    assert [str(one) for one in checks if one.value < one.bound - 2 * one.error] == []
