import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.standing import (
    BELIEF_ROUNDS,
    LEAST_SKILL,
    MAX_KEYS,
    MOST_SKILL,
    DraftStandings,
    Standings,
)
from specedge_p2p.names import PeerId


def rounds(standings: Standings[str], key: str, number: int, accepted: int) -> None:
    for _ in range(number):
        standings.observe_round(key, accepted, 1.0)


def test_nobody_is_judged_before_anything_was_seen() -> None:
    standings: Standings[str] = Standings()
    assert standings.skill("a") == 1.0
    assert standings.skill("a", 0.7) == 0.7
    assert standings.stall_share("a") == 0.0
    standings.observe_level("a", is_stalled=False)
    assert standings.skill("a", 0.7) == 0.7


def test_skill_is_what_was_brought_against_what_all_bring() -> None:
    standings: Standings[str] = Standings()
    for _ in range(1000):
        standings.observe_round("good", 2, 1.0)
        standings.observe_round("bad", 0, 1.0)
    assert standings.common == pytest.approx(1.0, abs=0.1)
    assert standings.skill("good") > 1.5
    assert standings.skill("bad") < 0.5


def test_hard_text_is_no_fault_of_a_node() -> None:
    standings: Standings[str] = Standings()
    for i in range(3000):
        for key in "ab":
            standings.observe_round(key, i % 5 == 0, 1.0)
    assert standings.common < 0.3
    assert standings.skill("a") == pytest.approx(1.0, abs=0.25)


def test_a_node_that_slows_down_is_seen_within_a_hundred_rounds() -> None:
    standings: Standings[str] = Standings()
    for key in "abcd":
        rounds(standings, key, 500, 1)
    rounds(standings, "a", 100, 0)
    assert standings.skill("a") < 0.7
    assert standings.skill("b") > 0.95
    rounds(standings, "a", 300, 1)
    assert standings.skill("a") > 0.9


def test_a_belief_weighs_as_much_as_some_rounds() -> None:
    standings: Standings[str] = Standings()
    rounds(standings, "a", int(BELIEF_ROUNDS), 0)
    assert standings.skill("a", 2.0) > 2 * standings.skill("a", 0.5)


def test_stalls_count_from_the_second_on() -> None:
    standings: Standings[str] = Standings()
    for i in range(300):
        standings.observe_level("a", is_stalled=i == 100)
        standings.observe_level("b", is_stalled=i in (100, 200))
    assert standings.stall_share("a") < 0.003 < standings.stall_share("b")


def test_law7_bounded_the_longest_unheard_of_are_forgotten() -> None:
    standings: Standings[str] = Standings()
    rounds(standings, "old", 200, 0)
    assert standings.skill("old") < 0.5
    for i in range(MAX_KEYS):
        standings.observe_level(str(i), is_stalled=False)
    assert standings.skill("old") == 1.0


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.floats(0, 50)),
        max_size=60,
    )
)
def test_skills_stay_sane(seen: list[tuple[str, int, float]]) -> None:
    standings: Standings[str] = Standings()
    for key, accepted, predicted in seen:
        standings.observe_round(key, accepted, predicted)
    for key in "ab":
        assert LEAST_SKILL <= standings.skill(key) <= MOST_SKILL


def test_a_new_node_is_believed_to_be_as_good_as_others_with_its_draft_model() -> None:
    standings: Standings[str] = Standings()
    drafts = DraftStandings()
    assert drafts.skill(b"good", standings.common) == 1.0
    for i in range(1000):
        for draft, num_accepted in ((b"good", 2), (b"bad", i % 3 == 0)):
            standings.observe_round(str(draft), num_accepted, 1.0)
            drafts.observe_round(draft, PeerId(f"{draft!r} {i % 2}"), num_accepted, 1.0)
    assert drafts.skill(b"good", standings.common) > 1.3
    assert drafts.skill(b"bad", standings.common) < 0.7


def test_law3_nodes_that_bring_nothing_spoil_no_draft_model_that_they_name() -> None:
    drafts = DraftStandings()
    for _ in range(300):
        drafts.observe_round(b"good", PeerId("honest"), 1, 1.0)
    before = drafts.skill(b"good", 1.0)
    for number in range(100):  # an identity costs nothing
        for _ in range(100):
            drafts.observe_round(b"good", PeerId(f"liar {number}"), 0, 1.0)
    assert drafts.skill(b"good", 1.0) == before


@pytest.mark.parametrize("predicted", [0.0, 1e-9])
def test_who_claims_to_be_slow_makes_no_draft_model_precious(predicted: float) -> None:
    drafts = DraftStandings()
    for _ in range(300):
        drafts.observe_round(b"good", PeerId("honest"), 1, 1.0)
        drafts.observe_round(b"good", PeerId("modest"), 1, predicted)
        drafts.observe_round(b"good", PeerId("silent"), 0, predicted)
    assert drafts.skill(b"good", 1.0) < 0.7 * MOST_SKILL
