import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.rests import (
    FIRST_REST_S,
    LEAST_SHARE,
    LONGEST_REST_S,
    MAX_KEYS,
    MOST_SHORT,
    TRIED_AGAIN_SHORT,
    Rests,
)


def tokens_until_rest(rests: Rests[str], share: float, now_s: float, seed: int = 1) -> int:
    """Steps of two tokens until the node rests; 200,000 where it never does."""
    rng, num_tokens = random.Random(seed), 0
    while not rests.rest_s("a", now_s) and num_tokens < 200_000:
        num_accepted = sum(rng.random() < share for _ in range(2))
        rests.observe("a", num_accepted, 2, now_s)
        num_tokens += 2
    return num_tokens


def test_nobody_rests_before_anything_was_seen() -> None:
    assert Rests[str]().rest_s("a", 0.0) == 0.0


def test_a_node_that_brings_nothing_is_found_out_first() -> None:
    assert tokens_until_rest(Rests(), 0.0, 0.0) == pytest.approx(MOST_SHORT / LEAST_SHARE, abs=2)
    assert 350 < tokens_until_rest(Rests(), 0.02, 0.0) < 1000


@pytest.mark.parametrize("seed", range(3))
def test_one_that_brings_twice_as_much_never_rests(seed: int) -> None:
    assert tokens_until_rest(Rests(), 2 * LEAST_SHARE, 0.0, seed) == 200_000


def test_each_time_in_vain_the_rest_is_twice_as_long() -> None:
    rests: Rests[str] = Rests()
    now_s, num_tokens = 0.0, 0
    lengths: list[float] = []
    for _ in range(8):
        num_tokens = tokens_until_rest(rests, 0.0, now_s)
        lengths.append(rests.rest_s("a", now_s))
        now_s += lengths[-1]
        assert rests.rest_s("a", now_s) == 0.0
    assert num_tokens == pytest.approx((MOST_SHORT - TRIED_AGAIN_SHORT) / LEAST_SHARE, abs=2)
    assert lengths[:3] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S]
    assert lengths[-1] == LONGEST_REST_S


def test_who_has_made_up_for_it_begins_anew() -> None:
    rests: Rests[str] = Rests()
    tokens_until_rest(rests, 0.0, 0.0)
    rests.observe("a", int(TRIED_AGAIN_SHORT) + 1, 2, FIRST_REST_S)
    tokens_until_rest(rests, 0.0, FIRST_REST_S)
    assert rests.rest_s("a", FIRST_REST_S) == FIRST_REST_S


def test_what_was_on_its_way_when_the_rest_began_does_not_count() -> None:
    rests: Rests[str] = Rests()
    tokens_until_rest(rests, 0.0, 0.0)
    for _ in range(1000):
        rests.observe("a", 0, 2, FIRST_REST_S / 2)
    assert rests.rest_s("a", FIRST_REST_S) == 0.0


def test_law7_bounded_the_longest_unheard_of_are_forgotten() -> None:
    rests: Rests[str] = Rests()
    tokens_until_rest(rests, 0.0, 0.0)
    for i in range(MAX_KEYS):
        rests.observe(str(i), 1, 1, 0.0)
    assert rests.rest_s("a", 0.0) == 0.0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(1, 30))))
def test_no_node_makes_another_one_rest(seen: list[tuple[str, int, int]]) -> None:
    both: Rests[str] = Rests()
    alone: Rests[str] = Rests()
    for now_s, (key, num_accepted, num_committed) in enumerate(seen):
        both.observe(key, num_accepted, num_committed, now_s)
        if key == "a":
            alone.observe(key, num_accepted, num_committed, now_s)
        assert both.rest_s("a", now_s) == alone.rest_s("a", now_s)
