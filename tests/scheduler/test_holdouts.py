import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.holdouts import Holdouts


@given(st.floats(0.0, 1.0), st.randoms(use_true_random=False), st.integers(1, 2000))
def test_the_share_is_kept_at_every_moment(
    rate: float, generator: random.Random, num_sessions: int
) -> None:
    holdouts = Holdouts(rate, generator.random)
    num_taken = 0
    for num in range(1, num_sessions + 1):
        num_taken += holdouts.takes_next()
        assert num_taken <= rate * num + 1e-6
        assert num_taken >= rate * num - 2 - 1e-6


def test_at_most_one_in_100_and_at_least_one_in_200() -> None:
    generator = random.Random(5)
    holdouts = Holdouts(0.0075, generator.random)
    num_taken = sum(holdouts.takes_next() for _ in range(100_000))
    assert num_taken / 100_000 == pytest.approx(0.0075, rel=0.01)


def test_every_session_of_a_block_is_as_likely_as_any_other() -> None:
    generator = random.Random(6)
    num_taken = [0] * 10
    for _ in range(4000):
        holdouts = Holdouts(0.1, generator.random)
        for index in range(20):
            if holdouts.takes_next():
                num_taken[index - 10] += 1
                assert index >= 10
    assert sum(num_taken) == 4000
    assert all(320 < num < 480 for num in num_taken)  # 4 standard deviations


def test_none() -> None:
    holdouts = Holdouts(0.0, lambda: 0.0)
    assert not any(holdouts.takes_next() for _ in range(10_000))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_senseless_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Holdouts(rate, lambda: 0.0)
