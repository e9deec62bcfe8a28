import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.rests import MAX_KEYS, Rests

STEP_S = 0.04


def observe(rests: Rests[str], key: str, num_own: int, num_counted: int, now_s: float) -> None:
    """A step of a session of which nobody else is a node."""
    rests.observe(key, num_own, num_own, num_counted, now_s)


def time_until_rest(rests: Rests[str], share: float, now_s: float = 0.0, seed: int = 1) -> float:
    """Seconds of steps of eight tokens until the node rests; 2,000 where it does not."""
    rng, begun_s = random.Random(seed), now_s
    while not rests.rest_s("a", now_s) and now_s - begun_s < 2000:
        num_accepted = sum(rng.random() < share for _ in range(8))
        observe(rests, "a", num_accepted, 8, now_s)
        now_s += STEP_S
    return now_s - begun_s


def test_nobody_rests_before_anything_was_seen() -> None:
    assert Rests[str]().rest_s("a", 0.0) == 0.0
    assert not Rests[str]().is_on_probation("a")


def test_a_node_that_brings_nothing_is_sent_away_after_ten_seconds() -> None:
    assert time_until_rest(Rests(), 0.0) == pytest.approx(10.0, abs=0.1)
    assert time_until_rest(Rests(), 0.02) == pytest.approx(10.0, abs=0.1)


def test_few_tokens_are_no_ground_for_a_judgement() -> None:
    rests: Rests[str] = Rests()
    for second in range(600):
        observe(rests, "a", 0, 1, float(second))
        assert rests.rest_s("a", float(second)) == (0.0 if second < 599 else 10.0)


@pytest.mark.parametrize("seed", range(3))
def test_one_that_brings_twice_as_much_as_it_must_never_rests(seed: int) -> None:
    assert time_until_rest(Rests(), 0.1, seed=seed) >= 2000


def test_a_link_that_hangs_for_seconds_sends_nobody_away() -> None:
    rests: Rests[str] = Rests()
    for step in range(2000):
        is_hanging = step % 250 < 150  # six seconds of every ten
        observe(rests, "a", 0 if is_hanging else 4, 8, step * STEP_S)
        assert rests.rest_s("a", step * STEP_S) == 0.0


def test_each_time_in_vain_the_rest_is_twice_as_long() -> None:
    rests: Rests[str] = Rests()
    now_s, lengths = 0.0, []
    for _ in range(8):
        now_s += time_until_rest(rests, 0.0, now_s)
        lengths.append(round(rests.rest_s("a", now_s - STEP_S)))
        assert rests.is_on_probation("a")
        now_s += lengths[-1]
        assert rests.rest_s("a", now_s) == rests.rest_s("a", now_s + 1000) == 0.0
    assert lengths == [10, 20, 40, 80, 160, 320, 640, 640]


def test_a_good_judgement_ends_probation_and_forgets_the_doubling() -> None:
    rests: Rests[str] = Rests()
    now_s = time_until_rest(rests, 0.0) + 10.0
    for step in range(400):
        observe(rests, "a", 1, 8, now_s + step * STEP_S)
    assert not rests.is_on_probation("a")
    now_s += 400 * STEP_S
    now_s += time_until_rest(rests, 0.0, now_s)
    assert rests.rest_s("a", now_s - STEP_S) == pytest.approx(10.0)


def test_a_judgement_does_not_go_on_after_a_pause() -> None:
    rests: Rests[str] = Rests()
    for step in range(500):
        observe(rests, "a", 1, 8, step * STEP_S)
    for step in range(240):  # a burst after a quiet hour, all of it in a link's hang
        observe(rests, "a", 0, 24, 3600 + step * STEP_S)
        assert rests.rest_s("a", 3600 + step * STEP_S) == 0.0


def test_another_one_keeps_a_node_from_a_rest_but_does_not_end_its_probation() -> None:
    rests: Rests[str] = Rests()
    for step in range(500):
        rests.observe("a", 0, 4, 8, step * STEP_S)
        assert rests.rest_s("a", step * STEP_S) == 0.0
    now_s = 20.0 + time_until_rest(rests, 0.0, 20.0) + 10.0
    for step in range(500):
        rests.observe("a", 0, 4, 8, now_s + step * STEP_S)
    assert rests.is_on_probation("a")
    assert rests.rest_s("a", now_s + 20.0) == 0.0


def test_tokens_that_say_nothing_are_not_heard() -> None:
    rests: Rests[str] = Rests()
    for step in range(500):
        rests.observe("a", 0, 0, 0, step * STEP_S)
    assert time_until_rest(rests, 0.0, 20.0) == pytest.approx(10.0, abs=0.1)


def test_what_was_on_its_way_when_the_rest_began_does_not_count() -> None:
    rests: Rests[str] = Rests()
    now_s = time_until_rest(rests, 0.0)
    for _ in range(1000):
        observe(rests, "a", 0, 8, now_s + 5.0)
    assert rests.rest_s("a", now_s + 10.0) == 0.0
    assert time_until_rest(rests, 0.0, now_s + 10.0) == pytest.approx(10.0, abs=0.1)


def test_law7_bounded_the_longest_unheard_of_are_forgotten() -> None:
    rests: Rests[str] = Rests()
    now_s = time_until_rest(rests, 0.0)
    observe(rests, "old", 1, 1, now_s)
    for i in range(MAX_KEYS - 2):
        observe(rests, str(i), 1, 1, now_s)
    observe(rests, "a", 0, 1, now_s)  # heard of again
    observe(rests, "new", 1, 1, now_s)
    assert rests.is_on_probation("a")
    for i in range(MAX_KEYS):
        observe(rests, str(i), 1, 1, now_s)
    assert rests.rest_s("a", now_s) == 0.0
    assert not rests.is_on_probation("a")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(1, 300))))
def test_one_record_says_nothing_of_another(seen: list[tuple[str, int, int]]) -> None:
    both: Rests[str] = Rests()
    alone: Rests[str] = Rests()
    for now_s, (key, num_accepted, num_counted) in enumerate(seen):
        observe(both, key, num_accepted, num_counted, now_s)
        if key == "a":
            observe(alone, key, num_accepted, num_counted, now_s)
        assert both.rest_s("a", now_s) == alone.rest_s("a", now_s)
