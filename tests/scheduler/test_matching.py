from collections import Counter
from collections.abc import Sequence
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.ports import Volunteers
from coordinator.scheduler.matching import Assignment, NodeOffer, SessionNeed, match, may_draft
from specedge_p2p.names import PeerId, SessionId


def need(
    name: str, volunteers: Volunteers = "any", nodes: Sequence[str] = (), released: str = ""
) -> SessionNeed:
    return SessionNeed(
        SessionId(name),
        volunteers,
        frozenset(PeerId(node) for node in nodes),
        frozenset([PeerId(released)] if released else []),
    )


def offer(
    name: str, room: int = 8, round_trip_s: float | None = 0.02, *, is_allowed: bool = False
) -> NodeOffer:
    return NodeOffer(PeerId(name), room, round_trip_s, is_allowed)


def pairs(assignments: Sequence[Assignment]) -> list[tuple[str, str]]:
    return [(a.session_id, a.peer_id) for a in assignments]


def test_sessions_are_spread_evenly() -> None:
    result = match([need(name) for name in "abcd"], [offer("x"), offer("y")])
    assert Counter(a.peer_id for a in result) == {"x": 2, "y": 2}
    assert [a.session_id for a in result] == ["a", "b", "c", "d"]


def test_the_least_loaded_comes_first_then_the_nearest() -> None:
    nodes = [
        offer("far", round_trip_s=0.08),
        offer("near", round_trip_s=0.01),
        offer("new", 8, None),
    ]
    assert pairs(match([need("a")], nodes)) == [("a", "near")]
    assert pairs(match([need("b", nodes=["near"]), need("a")], nodes)) == [("a", "far")]
    taken = [need("b", nodes=["near"]), need("c", nodes=["far"]), need("a")]
    assert pairs(match(taken, nodes)) == [("a", "new")]


def test_what_is_assigned_stays_and_gets_no_second_node() -> None:
    assert match([need("a", nodes=["x"])], [offer("x"), offer("y")]) == ()


def test_a_session_whose_node_left_gets_another() -> None:
    assert pairs(match([need("a", nodes=["gone"])], [offer("y")])) == [("a", "y")]


def test_no_node_takes_more_than_it_offers() -> None:
    sessions = [need(name) for name in "abcd"]
    assert pairs(match(sessions, [offer("x", 1), offer("y", 2)])) == [
        ("a", "x"),
        ("b", "y"),
        ("c", "y"),
    ]
    assert match(sessions, [offer("x", 0)]) == ()
    assert match([need("a"), need("b", nodes=["x"])], [offer("x", 1)]) == ()


def test_a_session_never_returns_to_a_node_that_released_it() -> None:
    assert match([need("a", released="x")], [offer("x")]) == ()
    assert pairs(match([need("a", released="x")], [offer("x"), offer("y", 8, 9.0)])) == [("a", "y")]


def test_law6_privacy_tiers_are_enforced() -> None:
    stranger, friend = offer("stranger"), offer("friend", 8, 9.0, is_allowed=True)
    assert match([need("a", "none")], [stranger, friend]) == ()
    assert match([need("a", "allowed")], [stranger]) == ()
    assert pairs(match([need("a", "allowed")], [stranger, friend])) == [("a", "friend")]
    assert pairs(match([need("a", "any")], [stranger, friend])) == [("a", "stranger")]


def test_sessions_with_less_choice_come_first() -> None:
    nodes = [offer("stranger", 1), offer("friend", 1, 0.001, is_allowed=True)]
    result = match([need("a", "any"), need("b", "allowed")], nodes)
    assert pairs(result) == [("b", "friend"), ("a", "stranger")]


NAMES = ["p", "q", "r", "s"]
PEERS = st.frozensets(st.sampled_from(NAMES).map(PeerId), max_size=2)
SESSIONS = st.lists(
    st.builds(
        SessionNeed,
        session_id=st.integers(0, 99).map(lambda n: SessionId(str(n))),
        volunteers=st.sampled_from(get_args(Volunteers)),
        nodes=PEERS,
        released_by=PEERS,
    ),
    unique_by=lambda session: session.session_id,
    max_size=8,
)
NODES = st.lists(
    st.builds(
        NodeOffer,
        peer_id=st.sampled_from(NAMES).map(PeerId),
        max_sessions=st.integers(0, 3),
        round_trip_s=st.none() | st.floats(0, 1),
        is_allowed=st.booleans(),
    ),
    unique_by=lambda node: node.peer_id,
)


@given(SESSIONS, NODES)
def test_law6_privacy_and_law7_bounded_for_any_network(
    sessions: list[SessionNeed], nodes: list[NodeOffer]
) -> None:
    needs = {session.session_id: session for session in sessions}
    offers = {node.peer_id: node for node in nodes}
    result = match(sessions, nodes)
    assert len({a.session_id for a in result}) == len(result)
    load = Counter(peer for session in sessions for peer in session.nodes if peer in offers)
    for assignment in result:
        session, node = needs[assignment.session_id], offers[assignment.peer_id]
        assert not session.nodes & offers.keys()
        assert node.peer_id not in session.released_by
        assert session.volunteers == "any" or (session.volunteers == "allowed" and node.is_allowed)
        load[node.peer_id] += 1
        assert load[node.peer_id] <= node.max_sessions
    left = [
        s
        for s in sessions
        if not s.nodes & offers.keys() and s.session_id not in {a.session_id for a in result}
    ]
    for session in left:  # nobody is left alone beside a node with room
        assert not any(may_draft(session, n) and load[n.peer_id] < n.max_sessions for n in nodes)
