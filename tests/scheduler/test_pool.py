"""Between two reviews few nodes are asked, and the answer is the one that all would give."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.ports import Volunteers
from coordinator.scheduler.matching import Assignment, Matching, match
from coordinator.scheduler.needs import SessionNeed
from coordinator.scheduler.places import NodeOffer
from coordinator.scheduler.pool import Pool
from specedge_p2p.names import PeerId, SessionId

FLAG = st.booleans()
TIERS: st.SearchStrategy[Volunteers] = st.sampled_from(("any", "allowed"))


def need(name: str, volunteers: Volunteers = "any") -> SessionNeed:
    return SessionNeed(SessionId(name), volunteers)


def offers(count: int) -> list[NodeOffer]:
    """Nearer ones first."""
    return [NodeOffer(PeerId(f"node-{i}"), 2, round_trip_s=0.01 * (i + 1)) for i in range(count)]


def test_a_review_names_the_best_nodes_that_then_have_room() -> None:
    nodes = [replace(offer, max_sessions=1) for offer in offers(5)]
    matching = match([need("a")], nodes, num_with_room=3)
    assert matching.assignments == (Assignment(SessionId("a"), PeerId("node-0")),)
    assert len(matching.with_room) == 3
    with_room = [peer_id for peer_id in matching.with_room if peer_id != "node-0"]
    assert with_room[:2] == ["node-1", "node-2"]
    assert match([need("a")], nodes).with_room == ()


def test_a_pool_that_has_everybody_suffices_while_everybody_is_served() -> None:
    pool = Pool(3)
    pool.renew([PeerId("a"), PeerId("b"), PeerId("c")], [need("hopeless")])
    pool.add(PeerId("d"))
    assert pool.peers == ("a", "b", "c", "d")
    found = Matching(assignments=(Assignment(SessionId("x"), PeerId("a")),))
    for _ in range(5):
        assert pool.suffices([need("x"), need("hopeless")], found)
    assert not pool.suffices([need("y")], Matching()), "a second node may make room"


def test_second_nodes_use_a_pool_up_too() -> None:
    pool = Pool(2)
    pool.renew([PeerId("a"), PeerId("b"), PeerId("c")])
    come = [Assignment(SessionId("x"), PeerId(name)) for name in "ab"]
    assert not pool.suffices([need("x")], Matching(assignments=tuple(come)))


def test_a_pool_that_leaves_somebody_out_suffices_until_it_is_used_up() -> None:
    pool = Pool(2)
    pool.renew([PeerId("a"), PeerId("b"), PeerId("c")])
    assert pool.peers == ("a", "b")
    nobody = SessionNeed(SessionId("n"), "none")
    found = Matching(assignments=(Assignment(SessionId("x"), PeerId("a")),))
    assert pool.suffices([nobody, need("x")], found)
    assert pool.suffices([nobody], Matching())
    assert not pool.suffices([need("x")], found), "somebody outside may be better by now"
    pool.renew([PeerId("a"), PeerId("b"), PeerId("c")])
    assert not pool.suffices([need("x")], Matching()), "somebody outside may have room"


def test_a_node_that_has_left_is_asked_no_more() -> None:
    pool = Pool(2)
    pool.renew([PeerId("a"), PeerId("b")])
    pool.remove(PeerId("a"))
    pool.remove(PeerId("nobody"))
    assert pool.peers == ("b",)


def test_who_leaves_makes_a_look_at_all_nodes_due_the_sooner() -> None:
    pool = Pool(2)
    pool.renew([PeerId("a"), PeerId("b"), PeerId("c")])
    assert pool.suffices([], Matching())
    pool.remove(PeerId("a"))
    found = Matching(assignments=(Assignment(SessionId("x"), PeerId("b")),))
    assert not pool.suffices([need("x")], found), "c may be better for the next one"


def test_who_found_no_place_among_all_is_looked_for_among_few() -> None:
    """Until the next look at all nodes: one that has room again is among the few."""
    pool = Pool(2)
    pool.renew([PeerId("a"), PeerId("b"), PeerId("c")], [need("x")])
    for _ in range(5):
        assert pool.suffices([need("x")], Matching())
    found = Matching(assignments=(Assignment(SessionId("x"), PeerId("a")),))
    assert pool.suffices([need("x")], found)
    assert not pool.suffices([need("y")], Matching())
    pool.renew([PeerId("a"), PeerId("b"), PeerId("c")])
    assert not pool.suffices([need("x")], Matching())


@st.composite
def networks(draw: st.DrawFn) -> list[NodeOffer]:
    return [
        NodeOffer(
            PeerId(f"node-{i}"),
            draw(st.integers(0, 3)),
            round_trip_s=draw(st.sampled_from((0.01, 0.02, 0.05))),
            level_time_s=draw(st.sampled_from((0.004, 0.01))),
            rest_s=draw(st.sampled_from([0.0, 10.0])),
            is_on_probation=draw(st.booleans()),
            is_allowed=draw(st.booleans()),
        )
        for i in range(draw(st.integers(1, 12)))
    ]


def unplaced(needs: list[SessionNeed], matching: Matching) -> list[SessionNeed]:
    given = {come.session_id for come in matching.assignments}
    return [need for need in needs if need.session_id not in given]


@given(networks(), st.integers(1, 5), st.lists(st.integers(0, 2), max_size=8), st.data())
def test_a_pool_gives_what_all_nodes_would_give(
    nodes: list[NodeOffer], size: int, groups: list[int], data: st.DataObject
) -> None:
    pool = Pool(size)
    now = {offer.peer_id: offer for offer in nodes}

    def give(matching: Matching) -> None:
        for come in matching.assignments:
            offer = now[come.peer_id]
            now[come.peer_id] = replace(offer, num_sessions=offer.num_sessions + 1)

    waiting = [need("first")]
    review = match(waiting, nodes, num_with_room=size + 1)
    waiting = unplaced(waiting, review)
    pool.renew(review.with_room, waiting)
    give(review)
    for group, count in enumerate(groups):
        busy = sorted(peer for peer, offer in now.items() if offer.num_sessions)
        is_freed, is_gone = data.draw(FLAG), data.draw(FLAG)
        if busy and is_freed:
            peer = data.draw(st.sampled_from(busy))
            now[peer] = replace(now[peer], num_sessions=now[peer].num_sessions - 1)
            pool.add(peer)
        elif now and is_gone:
            left = data.draw(st.sampled_from(sorted(now)))
            del now[left]
            pool.remove(left)
        waiting += [need(f"{group}-{i}", data.draw(TIERS)) for i in range(count)]
        everybody = match(waiting, list(now.values()), num_with_room=size + 1)
        few = match(waiting, [now[peer] for peer in pool.peers])
        if pool.suffices(waiting, few):
            assert {come.session_id for come in few.assignments} == {
                come.session_id for come in everybody.assignments
            }
            # One that few may see may get a lesser one of them until the next review.
            assert few == everybody or any(each.volunteers == "allowed" for each in waiting)
        else:
            pool.renew(everybody.with_room, unplaced(waiting, everybody))
        give(everybody)
        waiting = unplaced(waiting, everybody)
