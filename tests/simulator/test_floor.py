"""Law 3 in drawn worlds; `tests/soak` has a thousand of them."""

from tests.simulator.floor import LEAST_MEAN, judge_all, mean_ratio
from tests.simulator.traces import demo_book


def test_law3_the_floor_holds_in_drawn_worlds() -> None:
    judged = judge_all(range(50), demo_book())
    assert [str(one) for one in judged if one.is_broken] == []
    assert mean_ratio(judged) >= LEAST_MEAN
