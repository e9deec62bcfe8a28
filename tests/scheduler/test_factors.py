import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.factors import (
    FACTOR_ON_TRIAL,
    MAX_ROWS_ON_TRIAL,
    NUM_TREES_ON_TRIAL,
    Factor,
    Factors,
)
from specedge_p2p.names import PeerId

ANNA, BEN = PeerId("anna"), PeerId("ben")
SMALL, LARGE = b"small", b"large"


def test_a_drafter_that_keeps_its_word_is_believed_in_full() -> None:
    factor, rng = Factor(), random.Random(1)
    values = []
    for _ in range(2000):
        factor.observe(0.7, is_hit=rng.random() < 0.7)
        values.append(factor.value)
    assert sum(values) / len(values) == pytest.approx(1.0, abs=0.05)


def test_a_drafter_that_promises_twice_as_much_counts_half() -> None:
    factor, rng = Factor(), random.Random(2)
    values = []
    for _ in range(2000):
        factor.observe(0.8, is_hit=rng.random() < 0.4)
        values.append(factor.value)
    assert sum(values[100:]) / len(values[100:]) == pytest.approx(0.5, abs=0.07)


def test_a_drafter_that_becomes_useless_is_found_out_and_may_come_back() -> None:
    factor = Factor()
    for _ in range(100):
        factor.observe(0.9, is_hit=True)
    assert factor.value > 0.95
    for _ in range(150):
        factor.observe(0.9, is_hit=False)
    assert factor.value < 0.1
    for _ in range(11):
        factor.observe(0.9, is_hit=True)
    assert factor.value > 0.1


@given(st.lists(st.tuples(st.floats(), st.booleans()), max_size=300))
def test_the_factor_stays_in_its_bounds_whatever_is_claimed(
    claims: list[tuple[float, bool]],
) -> None:
    factor = Factor()
    for predicted, is_hit in claims:
        factor.observe(predicted, is_hit=is_hit)
        assert 0.005 <= factor.value <= 1.3


def test_a_new_node_is_on_trial() -> None:
    factors = Factors()
    for _ in range(NUM_TREES_ON_TRIAL):
        assert factors.source(1, ANNA, SMALL).factor == FACTOR_ON_TRIAL
        assert factors.source(1, ANNA, SMALL).max_rows == MAX_ROWS_ON_TRIAL
        factors.observe(ANNA, SMALL, 0.8, True)
    assert factors.source(1, ANNA, SMALL).factor > 1.0
    assert factors.source(1, ANNA, SMALL).max_rows == 0
    assert factors.num_trees(ANNA) == NUM_TREES_ON_TRIAL
    assert factors.source(1, BEN, SMALL).factor == FACTOR_ON_TRIAL
    assert factors.num_trees(BEN) == 0


def test_on_trial_a_bad_node_counts_less_than_an_unknown_one() -> None:
    factors = Factors()
    for _ in range(NUM_TREES_ON_TRIAL - 1):
        factors.observe(BEN, SMALL, 1.0, False)
    assert factors.source(1, BEN, SMALL).factor < FACTOR_ON_TRIAL
    for _ in range(100):
        factors.observe(BEN, SMALL, 1.0, False)
    assert factors.source(1, BEN, SMALL).factor < 0.1


def test_what_a_node_earned_under_one_key_is_worth_nothing_under_another() -> None:
    factors = Factors()
    for _ in range(100):
        factors.observe(ANNA, SMALL, 0.5, True)
    assert factors.source(1, ANNA, SMALL).factor == 1.3
    assert factors.source(1, PeerId("anna again"), SMALL).factor == FACTOR_ON_TRIAL


def test_the_quality_of_a_draft_model_is_its_share_of_hits_over_all_nodes() -> None:
    factors, rng = Factors(), random.Random(3)
    assert factors.quality(SMALL) == factors.quality(LARGE) == 0.5
    for at in range(1000):
        peer = (ANNA, BEN)[at % 2]
        factors.observe(peer, SMALL, 0.9, rng.random() < 0.69)
        factors.observe_own(LARGE, is_hit=rng.random() < 0.8)
    assert factors.quality(SMALL) == pytest.approx(0.69, abs=0.06)
    assert factors.quality(LARGE) == pytest.approx(0.80, abs=0.06)


@pytest.mark.parametrize("claim", [0.95, 0.5, 0.001])
@pytest.mark.parametrize("num_hits", [0, 8])
def test_law3_nodes_that_are_never_right_spoil_no_model_that_they_name(
    claim: float, num_hits: int
) -> None:
    """However little they claim, and however often they were right before they began to lie."""
    factors = Factors()
    for _ in range(200):
        factors.observe(ANNA, LARGE, 0.9, is_hit=True)
    before = factors.quality(LARGE)
    for number in range(30):  # an identity costs nothing
        for i in range(300):
            factors.observe(PeerId(f"liar {number}"), LARGE, claim, is_hit=i < num_hits)
    assert factors.quality(LARGE) == pytest.approx(before, abs=0.35 if num_hits else 1e-9)
    for _ in range(200):
        factors.observe(ANNA, LARGE, 0.9, is_hit=True)
    assert factors.quality(LARGE) > 0.6


def test_an_overconfident_model_is_known_for_how_often_it_is_right() -> None:
    factors, rng = Factors(), random.Random(3)
    for _ in range(2000):
        factors.observe(ANNA, SMALL, 0.9, is_hit=rng.random() < 0.2)
        factors.observe(BEN, LARGE, 0.45, is_hit=rng.random() < 0.45)
    assert factors.quality(SMALL) == pytest.approx(0.2, abs=0.06)
    assert factors.quality(LARGE) == pytest.approx(0.45, abs=0.06)


def test_draft_models_are_numbered_once() -> None:
    factors = Factors()
    assert factors.draft(SMALL) == 1
    assert factors.draft(LARGE) == 2
    factors.observe(ANNA, SMALL, 0.9, True)
    assert factors.draft(SMALL) == 1


def test_law7_bounded_memory_of_nodes_and_models() -> None:
    factors = Factors(max_keys=10)
    for number in range(100):
        factors.observe(PeerId(f"p{number}"), b"%d" % number, 0.9, True)
        factors.observe(ANNA, SMALL, 0.9, True)
    assert factors.num_trees(ANNA) == 100  # who goes on is not forgotten
    assert sum(1 for number in range(100) if factors.num_trees(PeerId(f"p{number}"))) == 9
    with pytest.raises(ValueError, match="at least one"):
        Factors(max_keys=0)


def test_a_bad_record_fades_where_nothing_new_is_seen() -> None:
    factor = Factor()
    for _ in range(50):
        factor.observe(0.9, is_hit=False)
    bad = factor.value
    for _ in range(3000):
        factor.fade()
    assert bad < 0.1 < 0.9 < factor.value < 1.0
