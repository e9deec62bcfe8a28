"""A session's first node, and when it is moved to another."""

from collections import Counter
from dataclasses import replace

import pytest

from coordinator.scheduler.matching import MAX_MOVES, Matching, match
from coordinator.scheduler.needs import PATIENCE_S, Drafter
from coordinator.scheduler.places import SHARED_LEVEL, shared_level_s
from specedge_p2p.names import PeerId
from tests.support.matching import come, drafter, go, need, offer


def test_sessions_are_spread_evenly() -> None:
    result = match([need(name) for name in "abcd"], [offer("x"), offer("y")])
    assert Counter(a.peer_id for a in result.assignments) == {"x": 2, "y": 2}
    assert [a.session_id for a in result.assignments] == ["a", "b", "c", "d"]
    assert not any(a.is_standby for a in result.assignments)


def test_a_proven_node_leaves_room_for_its_equals() -> None:
    nodes = [offer("a", level_time_s=0.0055, skill=1.15), offer("b", level_time_s=0.006)]
    assert Counter(peer for _, peer in come(match([need(n) for n in "1234"], nodes))) == {
        "a": 2,
        "b": 2,
    }


def test_the_largest_predicted_gain_comes_first() -> None:
    nodes = [
        offer("far", round_trip_s=0.08),
        offer("near", round_trip_s=0.01),
        offer("new", 8, None),
    ]
    assert come(match([need("a")], nodes)) == [("a", "near")]
    nodes = [offer("quick", level_time_s=0.006), offer("slow", level_time_s=0.018)]
    assert come(match([need("a")], nodes)) == [("a", "quick")]
    nodes = [offer("small", level_time_s=0.006), offer("large", skill=1.7, level_time_s=0.012)]
    assert come(match([need("a")], nodes, 0.04)) == [("a", "large")]
    assert come(match([need("a")], nodes, 0.012)) == [("a", "small")]
    nodes = [offer("proven", skill=1.1), offer("a disappointment", skill=0.5)]
    assert come(match([need("a")], nodes)) == [("a", "proven")]


def test_a_loaded_node_shares_with_a_lesser_one() -> None:
    nodes = [offer("near", 64, 0.01), offer("far", 64, 0.04)]
    given_to = Counter(p for _, p in come(match([need(str(i)) for i in range(24)], nodes)))
    assert given_to["near"] > given_to["far"] > 0


def test_what_is_assigned_stays_and_gets_no_second_node_of_the_same_draft() -> None:
    nodes = [offer("x", num_sessions=1), offer("y")]
    assert match([need("a", nodes=["x"])], nodes) == Matching()


def test_a_session_whose_node_left_gets_another() -> None:
    assert come(match([need("a", nodes=["gone"])], [offer("y")])) == [("a", "y")]


def test_no_node_takes_more_than_it_offers() -> None:
    sessions = [need(name) for name in "abcd"]
    result = match(sessions, [offer("x", 1), offer("y", 2)])
    assert Counter(p for _, p in come(result)) == {"x": 1, "y": 2}
    assert match(sessions, [offer("x", 0)]) == Matching()
    taken = [need("a"), need("b", nodes=["x"])]
    assert match(taken, [offer("x", 1, num_sessions=1)]) == Matching()


def test_a_session_never_returns_to_a_node_that_released_it() -> None:
    assert match([need("a", released="x")], [offer("x")]) == Matching()
    assert come(match([need("a", released="x")], [offer("x"), offer("y", 8, 9.0)])) == [("a", "y")]


def test_law6_privacy_tiers_are_enforced() -> None:
    stranger, friend = offer("stranger"), offer("friend", 8, 9.0, is_allowed=True)
    assert match([need("a", "none")], [stranger, friend]) == Matching()
    assert match([need("a", "allowed")], [stranger]) == Matching()
    assert come(match([need("a", "allowed")], [stranger, friend])) == [("a", "friend")]
    assert come(match([need("a", "any")], [stranger, friend])) == [("a", "stranger")]


def test_law6_privacy_holds_for_a_second_node() -> None:
    late = drafter("friend", is_late=True)
    friend = offer("friend", is_allowed=True, num_sessions=1)
    stranger = offer("stranger", draft=2, skill=3.0)
    for volunteers, expected in (("allowed", []), ("any", [("a", "stranger")])):
        assert come(match([need("a", volunteers, [late])], [friend, stranger])) == expected  # type: ignore[arg-type]
    other_friend = replace(friend, peer_id=PeerId("other"), num_sessions=0)
    result = match([need("a", "allowed", [late])], [friend, stranger, other_friend])
    assert come(result) == [("a", "other")]


def test_sessions_with_less_choice_come_first() -> None:
    nodes = [offer("stranger", 1), offer("friend", 1, 0.001, is_allowed=True)]
    result = match([need("a", "any"), need("b", "allowed")], nodes)
    assert come(result) == [("b", "friend"), ("a", "stranger")]


# --- moves ---------------------------------------------------------------------------------------


def test_a_better_node_is_opened_before_the_old_one_goes() -> None:
    nodes = [offer("slow", num_sessions=1, skill=0.3), offer("fresh")]
    assert come(match([need("a", nodes=["slow"])], nodes)) == [("a", "fresh")]
    nodes = [nodes[0], replace(nodes[1], num_sessions=1)]
    opening = need("a", nodes=["slow", drafter("fresh", 0.2, has_proposed=False)])
    assert match([opening], nodes) == Matching()
    assert go(match([need("a", nodes=["slow", drafter("fresh", 0.4)])], nodes)) == [("a", "slow")]


def test_one_that_never_proposes_is_given_up() -> None:
    nodes = [offer("slow", num_sessions=1, skill=0.3), offer("dumb", num_sessions=1)]
    tried = need("a", nodes=["slow", drafter("dumb", PATIENCE_S, has_proposed=False)])
    assert go(match([tried], nodes)) == [("a", "dumb")]
    nobody = [drafter("slow", 60, has_proposed=False), drafter("dumb", 60, has_proposed=False)]
    assert match([need("a", nodes=nobody)], nodes) == Matching()


SILENT = {"has_proposed": False}
LATE = {"is_late": True}


@pytest.mark.parametrize(
    ("first", "second", "who_goes"),
    [
        (drafter("x", **SILENT), drafter("y", PATIENCE_S, **SILENT), "y"),
        (drafter("x", **LATE), drafter("y", PATIENCE_S, **SILENT), "y"),
        (drafter("x", PATIENCE_S, **SILENT), drafter("y", **LATE), "x"),
        (drafter("x", **LATE), drafter("y", **LATE), "y"),
    ],
)
def test_where_neither_of_two_is_heard_a_third_takes_the_place_of_the_lesser(
    first: Drafter, second: Drafter, who_goes: str
) -> None:
    pair = [
        offer("x", num_sessions=1, draft=1, skill=1.1),
        offer("y", num_sessions=1, draft=2, skill=1.0),
    ]
    held = need("a", nodes=[first, second])
    assert match([held], pair) == Matching()
    result = match([held], [*pair, offer("z", skill=0.5)])
    assert (go(result), come(result)) == ([("a", who_goes)], [("a", "z")])
    assert result.assignments[0].is_standby
    for third in (offer("z", 1, num_sessions=1), offer("z", rest_s=10.0)):
        assert match([held], [*pair, third]) == Matching()
    assert match([replace(held, released_by=frozenset([PeerId("z")]))], [*pair, offer("z")]) == (
        Matching()
    )


def test_law6_privacy_holds_where_neither_of_two_is_heard() -> None:
    pair = [drafter(name, is_late=True) for name in "xy"]
    nodes = [offer(name, num_sessions=1, is_allowed=True) for name in "xy"]
    assert match([need("a", "allowed", pair)], [*nodes, offer("stranger")]) == Matching()
    friend = offer("z", 8, 9.0, is_allowed=True)
    assert come(match([need("a", "allowed", pair)], [*nodes, offer("stranger"), friend])) == [
        ("a", "z")
    ]
    assert match([need("a", "none", pair)], [*nodes, friend]) == Matching()


def test_one_of_two_that_may_still_come_is_waited_for() -> None:
    nodes = [offer("x", num_sessions=1), offer("y", num_sessions=1), offer("z")]
    coming = drafter("y", PATIENCE_S - 0.1, has_proposed=False)
    for first in (drafter("x", is_late=True), drafter("x", has_proposed=False)):
        assert match([need("a", nodes=[first, coming])], nodes) == Matching()


def test_a_machine_whose_levels_grow_with_its_sessions_gets_few() -> None:
    sessions = [need(str(i)) for i in range(8)]
    slow = offer("slow", level_time_s=0.03)
    for level_session_time_s, expected in ((0.02, 2), (0.0, 5)):
        quick = offer("quick", level_time_s=0.02, level_session_time_s=level_session_time_s)
        given_to = Counter(peer for _, peer in come(match(sessions, [quick, slow], 0.15)))
        assert given_to["quick"] == expected


def test_a_level_of_many_sessions() -> None:
    assert shared_level_s(0.02, 0.02, 1) == pytest.approx(0.02)
    assert shared_level_s(0.02, 0.02, 5) == pytest.approx(0.1)
    assert shared_level_s(0.02, 0.0, 5) == pytest.approx(0.02 * (1 + 4 * SHARED_LEVEL))


def test_few_sessions_move_at_once() -> None:
    nodes = [offer("slow", 64, num_sessions=20, skill=0.1), offer("fresh", 64)]
    sessions = [need(str(i), nodes=["slow"]) for i in range(20)]
    assert len(come(match(sessions, nodes))) == MAX_MOVES


def test_a_resting_node_has_no_session_until_it_is_tried_again() -> None:
    resting = offer("z", num_sessions=3, rest_s=10.0)
    sessions = [need(name, nodes=["z"]) for name in "abc"]
    result = match(sessions, [resting])
    assert sorted(go(result)) == [("a", "z"), ("b", "z"), ("c", "z")]
    assert {gone.rest_s for gone in result.dismissals} == {10.0}
    assert come(result) == []
    result = match(sessions, [resting, offer("good", 2)])
    assert len(go(result)) == 3
    assert sorted(come(result)) == [("a", "good"), ("b", "good")]
    second = [offer("x", num_sessions=1), replace(resting, num_sessions=1, draft=2)]
    result = match([need("a", nodes=["x", "z"])], second)
    assert (go(result), come(result)) == ([("a", "z")], [])
    late = need("a", nodes=[drafter("x", is_late=True)])
    idle = replace(resting, num_sessions=0)
    assert match([late], [offer("x", num_sessions=1), idle]) == Matching()
    assert come(match([late], [offer("x", num_sessions=1), replace(idle, rest_s=0.0)])) == [
        ("a", "z")
    ]


def test_after_a_rest_one_session_must_do() -> None:
    probed = offer("z", is_on_probation=True)
    assert come(match([need("a"), need("b")], [probed])) == [("a", "z")]
    assert come(match([need("a")], [replace(probed, max_sessions=0)])) == []
    kept = [need(name, nodes=["z"]) for name in "ab"]
    assert match(kept, [replace(probed, num_sessions=2)]) == Matching()
