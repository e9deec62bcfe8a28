"""A second node of a session: another opinion, or one that stands by."""

from dataclasses import replace

from coordinator.scheduler.matching import Matching, match
from coordinator.scheduler.needs import PATIENCE_S, SETTLED_S
from tests.support.matching import come, drafter, go, need, offer


def test_a_second_node_drafts_with_another_model() -> None:
    nodes = [offer("x", num_sessions=1, draft=1), offer("y", draft=2)]
    result = match([need("a", nodes=["x"])], nodes)
    assert come(result) == [("a", "y")]
    assert result.assignments[0].is_standby
    nodes = [offer("x", num_sessions=1, draft=1), offer("y", num_sessions=1, draft=2)]
    assert match([need("a", nodes=["x", "y"])], nodes) == Matching()


def test_a_second_model_that_comes_too_late_adds_nothing() -> None:
    nodes = [offer("x", num_sessions=1, draft=1), offer("y", draft=2, level_time_s=0.04)]
    assert match([need("a", nodes=["x"])], nodes) == Matching()


def test_the_search_for_another_model_gives_up_after_some_looks() -> None:
    same = [offer(f"same {i:02}", round_trip_s=0.015) for i in range(20)]
    nodes = [offer("x", num_sessions=1), *same, offer("other", draft=2)]
    assert match([need("a", nodes=["x"])], nodes) == Matching()
    assert come(match([need("a", nodes=["x"])], [nodes[0], *same[:5], nodes[-1]])) == [
        ("a", "other")
    ]


def test_a_session_begins_with_two_models_where_there_is_room() -> None:
    nodes = [offer("x", draft=1), offer("y", draft=2), offer("z", 1, draft=3, skill=0.9)]
    result = match([need("a")], nodes)
    assert come(result) == [("a", "x"), ("a", "y")]
    assert [assigned.is_standby for assigned in result.assignments] == [False, True]
    few = [offer("x", 1, draft=1), offer("y", 1, draft=2)]
    assert sorted(come(match([need("a"), need("b")], few))) == [("a", "x"), ("b", "y")]


def test_a_second_node_that_was_never_heard_makes_room_for_a_session_without_any() -> None:
    """However long the first one still reads the prompt."""
    silent = [drafter(name, 0.0, has_proposed=False) for name in "xy"]
    nodes = [offer("x", 1, num_sessions=1, draft=1), offer("y", 1, num_sessions=1, draft=2)]
    result = match([need("a", nodes=silent), need("b")], nodes)
    assert (go(result), come(result)) == ([("a", "y")], [("b", "y")])


def test_who_is_sent_away_for_silence_may_go_to_a_session_without_any_node() -> None:
    late = [drafter(name, is_late=True) for name in "pr"]
    nodes = [
        offer("p", 0, num_sessions=1),
        offer("q", 1),
        offer("r", 1, num_sessions=1, is_allowed=True, skill=0.02),
    ]
    result = match([need("0", "allowed"), need("1", nodes=late)], nodes)
    assert ("0", "r") in come(result)


def test_of_second_nodes_the_one_that_did_least_for_its_session_makes_room() -> None:
    nodes = [offer(name, 1, num_sessions=1, draft=ord(name) % 2) for name in "abcdef"]
    pairs = [
        need("old", nodes=[drafter("a"), drafter("b")]),
        need("young", nodes=[drafter("c", 1.0), drafter("d", 1.0)]),
        need("new", nodes=[drafter("e", 0.1), drafter("f", 0.1, has_proposed=False)]),
    ]
    for taken in ("new", "young", "old"):
        result = match([*pairs, need("z")], nodes)
        assert [session for session, _ in go(result)] == [taken]
        pairs = [pair for pair in pairs if pair.session_id != taken]


def test_a_session_whose_node_is_late_comes_before_the_second_opinion_of_a_new_one() -> None:
    nodes = [offer("x", 1, num_sessions=1), offer("y", 1, draft=2), offer("z", 1, draft=3)]
    late = need("late", nodes=[drafter("x", is_late=True)])
    assert {session for session, _ in come(match([late, need("new")], nodes))} == {"late", "new"}


def test_who_lost_a_second_node_gets_no_other_one_at_once() -> None:
    """It would have to read the whole text again, for a session that may lose it again."""
    nodes = [offer("x", num_sessions=1, draft=1), offer("y", draft=2)]
    alone = need("a", nodes=["x"])
    assert match([replace(alone, since_dismissal_s=SETTLED_S - 1)], nodes) == Matching()
    assert come(match([replace(alone, since_dismissal_s=SETTLED_S)], nodes)) == [("a", "y")]
    late = replace(need("a", nodes=[drafter("x", is_late=True)]), since_dismissal_s=0.0)
    assert come(match([late], nodes)) == [("a", "y")]


def test_another_model_joins_as_soon_as_the_first_node_is_heard() -> None:
    """Short answers are over before a node could be judged by them."""
    nodes = [offer("x", num_sessions=1, draft=1), offer("y", draft=2)]
    assert come(match([need("a", nodes=[drafter("x", 0.1)])], nodes)) == [("a", "y")]
    silent = drafter("x", 0.1, has_proposed=False)
    assert match([need("a", nodes=[silent])], nodes) == Matching()


def test_a_young_session_is_not_moved_yet() -> None:
    nodes = [offer("x", num_sessions=1, skill=0.5), offer("better", skill=1.2)]
    assert match([need("a", nodes=[drafter("x", 1.0)])], nodes) == Matching()
    assert come(match([need("a", nodes=[drafter("x", SETTLED_S)])], nodes)) == [("a", "better")]


def test_a_second_node_stands_by_where_levels_stall() -> None:
    nodes = [offer("x", num_sessions=1, stall_share=0.004), offer("y")]
    assert come(match([need("a", nodes=["x"])], nodes)) == [("a", "y")]
    nodes = [offer("x", num_sessions=1, stall_share=0.004), offer("y", num_sessions=1)]
    assert match([need("a", nodes=["x", "y"])], nodes) == Matching()
    nodes = [offer("x", num_sessions=1, stall_share=0.002), offer("y", num_sessions=1)]
    assert len(go(match([need("a", nodes=["x", "y"])], nodes))) == 1


def test_a_standby_comes_at_once_when_a_node_is_late_or_silent() -> None:
    nodes = [offer("x", num_sessions=1), offer("y")]
    for which in (
        drafter("x", 0.5, is_late=True),
        drafter("x", PATIENCE_S, has_proposed=False),
    ):
        assert come(match([need("a", nodes=[which])], nodes)) == [("a", "y")]
    waiting = drafter("x", PATIENCE_S - 0.1, has_proposed=False)
    assert match([need("a", nodes=[waiting])], nodes) == Matching()


def test_a_late_node_goes_when_its_standby_has_proposed() -> None:
    nodes = [offer("x", num_sessions=1), offer("y", num_sessions=1)]
    late = drafter("x", is_late=True)
    coming = need("a", nodes=[late, drafter("y", 0.1, has_proposed=False)])
    assert match([coming], nodes) == Matching()
    assert go(match([need("a", nodes=[late, drafter("y", 0.3)])], nodes)) == [("a", "x")]


def test_never_more_than_two() -> None:
    nodes = [offer(name, num_sessions=1, draft=i) for i, name in enumerate("xyz")]
    assert len(go(match([need("a", nodes=["x", "y", "z"])], nodes))) == 1
    nodes.append(offer("w", draft=9, skill=3.0))
    assert come(match([need("a", nodes=["x", "y"])], nodes)) == []


def test_a_session_without_a_node_takes_the_second_of_another() -> None:
    nodes = [offer("x", 1, num_sessions=1, draft=1), offer("y", 1, num_sessions=1, draft=2)]
    result = match([need("a", nodes=["x", "y"]), need("b")], nodes)
    assert len(go(result)) == 1
    assert [session for session, _ in come(result)] == ["b"]
    assert go(result)[0][1] == come(result)[0][1]
    nobodys = [need("a", nodes=["x", "y"]), need("b", "allowed")]
    assert match(nobodys, nodes) == Matching()


def test_a_second_node_that_takes_no_new_sessions_stays_where_it_is() -> None:
    for max_sessions, moves in ((1, [("a", "y")]), (0, [])):
        nodes = [offer("x", 1, num_sessions=1), offer("y", max_sessions, num_sessions=1, draft=2)]
        pair = need("a", nodes=[drafter("x"), drafter("y", 1.0, has_proposed=False)])
        result = match([pair, need("b")], nodes)
        assert go(result) == moves
        assert len(come(result)) == len(moves)
