"""What holds of a matching in any network, however large."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.ports import Volunteers
from coordinator.scheduler.matching import MAX_DRAFTERS, Matching, match
from coordinator.scheduler.needs import Drafter, SessionNeed, may_draft
from coordinator.scheduler.places import NodeOffer
from specedge_p2p.names import PeerId, SessionId
from tests.support.matching import go, need, offer

NAMES = ["p", "q", "r", "s"]
DRAFTERS = st.lists(
    st.builds(
        Drafter,
        peer_id=st.sampled_from(NAMES).map(PeerId),
        age_s=st.floats(0, 10),
        has_proposed=st.booleans(),
        is_late=st.booleans(),
    ),
    unique_by=lambda drafter: drafter.peer_id,
    max_size=2,
).map(tuple)
SESSIONS = st.lists(
    st.builds(
        SessionNeed,
        session_id=st.integers(0, 99).map(lambda n: SessionId(str(n))),
        volunteers=st.sampled_from(get_args(Volunteers)),
        drafters=DRAFTERS,
        released_by=st.frozensets(st.sampled_from(NAMES).map(PeerId), max_size=2),
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
        level_time_s=st.floats(0.001, 0.1),
        draft=st.integers(0, 2),
        skill=st.floats(0.02, 2),
        stall_share=st.sampled_from([0.0, 0.01]),
        rest_s=st.sampled_from([0.0, 10.0]),
        is_on_probation=st.booleans(),
    ),
    unique_by=lambda node: node.peer_id,
)


def counted(sessions: Sequence[SessionNeed], nodes: Sequence[NodeOffer]) -> list[NodeOffer]:
    """The nodes with the numbers of sessions that the sessions say."""
    load = Counter(d.peer_id for session in sessions for d in session.drafters)
    return [replace(node, num_sessions=load[node.peer_id]) for node in nodes]


def applied(sessions: Sequence[SessionNeed], matching: Matching) -> list[SessionNeed]:
    """The sessions a while later, when everybody has proposed."""
    drafters = {s.session_id: {d.peer_id for d in s.drafters} for s in sessions}
    for gone in matching.dismissals:
        drafters[gone.session_id].remove(gone.peer_id)
    for new in matching.assignments:
        assert new.peer_id not in drafters[new.session_id]
        assert new.is_standby == bool(drafters[new.session_id])
        drafters[new.session_id].add(new.peer_id)
    return [
        replace(s, drafters=tuple(map(Drafter, sorted(drafters[s.session_id])))) for s in sessions
    ]


@given(SESSIONS, NODES)
def test_law6_privacy_and_law7_bounded_for_any_network(
    sessions: list[SessionNeed], nodes: list[NodeOffer]
) -> None:
    present = {node.peer_id for node in nodes}
    sessions = [
        replace(s, drafters=tuple(d for d in s.drafters if d.peer_id in present)) for s in sessions
    ]
    nodes = counted(sessions, nodes)
    needs = {session.session_id: session for session in sessions}
    offers: dict[str, NodeOffer] = {node.peer_id: node for node in nodes}
    result = match(sessions, nodes)
    assert result == match(sessions, nodes)
    for assignment in result.assignments:
        assert may_draft(needs[assignment.session_id], offers[assignment.peer_id])
    after = applied(sessions, result)
    assert all(len(session.drafters) <= MAX_DRAFTERS for session in after)
    for session in sessions:  # nobody is left alone who was not
        is_alone = not {s.session_id: s for s in after}[session.session_id].drafters
        rests_s = [offers[p].rest_s for s, p in go(result) if s == session.session_id]
        assert not (is_alone and session.drafters) or all(rests_s)
    load: dict[str, NodeOffer] = {node.peer_id: node for node in counted(after, nodes)}
    for node in nodes:
        limit = max(node.room, node.num_sessions)
        assert load[node.peer_id].num_sessions <= limit
    for assignment in result.assignments:  # who takes no new ones gets none in exchange either
        assert load[assignment.peer_id].num_sessions <= offers[assignment.peer_id].room
    for session in after:  # nobody is left alone beside a node with room
        if not session.drafters:
            assert not any(
                may_draft(session, n) and load[n.peer_id].num_sessions < n.room for n in nodes
            )


@given(SESSIONS, NODES)
def test_matching_comes_to_rest(sessions: list[SessionNeed], nodes: list[NodeOffer]) -> None:
    present = {node.peer_id for node in nodes}
    sessions = [
        replace(s, drafters=tuple(d for d in s.drafters if d.peer_id in present)) for s in sessions
    ]
    for _ in range(40):
        matching = match(sessions, counted(sessions, nodes))
        if matching == Matching():
            return
        sessions = applied(sessions, matching)
    raise AssertionError("sessions move for ever")


def test_a_large_network_is_matched_quickly() -> None:
    nodes = [
        offer(
            f"{i:05}",
            4,
            0.005 + (i * 7919 % 1000) / 10_000,
            level_time_s=0.004 + (i * 104_729 % 100) / 5_000,
            draft=i % 3,
            is_allowed=i % 10 == 0,
        )
        for i in range(10_000)
    ]
    sessions = [need(str(i), "allowed" if i % 10 == 0 else "any") for i in range(2_000)]
    started_s = time.process_time()
    result = match(sessions, nodes)
    took_s = time.process_time() - started_s
    assert sum(not come.is_standby for come in result.assignments) == 2_000
    settled = applied(sessions, result)
    assert len(match(settled, counted(settled, nodes)).dismissals) == 0
    assert took_s < 2  # 0.1 s where nothing else runs; comparing all pairs would take a minute
