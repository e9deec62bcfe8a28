"""What a node knows of its sessions: leases, places, restarts, and coordinators that go astray."""

import logging

import pytest

from node.desk import Desk
from node.drafter import Drafter
from specedge_p2p.lm.toy import ToyModel, ToyParams
from specedge_p2p.names import PeerId
from specedge_p2p.wire import messages as m
from specedge_p2p.wire.build import open_messages
from specedge_p2p.wire.columns import pack_tokens
from tests.support.links import OPEN, WELCOME, changed

COORDINATOR = PeerId("c")
MODEL = ToyParams(eos_bias=-60.0)
PROMPT = [2, 3, 4]


class Roomy:
    """A link on which everything may be sent."""

    def room(self, session_no: int, tree_no: int | None = None) -> int:
        return 256


def make_desk(max_sessions: int = 2) -> tuple[Desk, Drafter]:
    drafter = Drafter(ToyModel(MODEL))
    desk = Desk(drafter, max_sessions)
    desk.begin_link(COORDINATOR, changed(WELCOME, vocab_size=32))
    return desk, drafter


def lease(number: int) -> bytes:
    return number.to_bytes(16, "big")


def opening(session_no: int, lease_no: int | None = None) -> tuple[m.Open | m.Prompt, ...]:
    lease_id = lease(session_no if lease_no is None else lease_no)
    head = changed(OPEN, session_no=session_no, lease_id=lease_id, max_position=150)
    return open_messages(head, PROMPT)


def verdict(session_no: int, position: int, token_ids: list[int], restart: int = 0) -> m.Verdict:
    packed = pack_tokens(token_ids)
    return m.Verdict(session_no, 1, position, packed, 0, restart_tree_no=restart)


def grow(desk: Desk, drafter: Drafter, num_levels: int = 2) -> list[m.Proposal]:
    for _ in range(num_levels):
        desk.shed(drafter.level().shed)
    return desk.gains(Roomy())


def test_a_restarted_tree_is_sent_again_whole() -> None:
    desk, drafter = make_desk()
    desk.apply(opening(1))
    (first,) = grow(desk, drafter)
    assert (first.tree_no, first.first_index) == (1, 1)
    assert desk.gains(Roomy()) == []
    desk.apply([verdict(1, 3, [], restart=1)])
    (again,) = desk.gains(Roomy())
    assert (again.tree_no, again.first_index) == (2, 1)
    assert again.token_ids == first.token_ids


def test_a_restart_of_a_tree_that_has_ended_anyway_changes_nothing() -> None:
    desk, drafter = make_desk()
    desk.apply(opening(1))
    grow(desk, drafter)
    desk.apply([verdict(1, 3, [0])])  # a token that nobody guessed: the next tree begins
    (second,) = grow(desk, drafter)
    assert second.tree_no == 2
    desk.apply([verdict(1, 4, [], restart=1)])
    assert desk.gains(Roomy()) == []


def test_law7_bounded_places_go_to_new_sessions_rather_than_to_unanswered_leases() -> None:
    desk, drafter = make_desk(max_sessions=2)
    desk.apply([*opening(1), *opening(2)])
    desk.end_link()
    resumes = desk.begin_link(COORDINATOR, changed(WELCOME, vocab_size=32))
    assert [resume.lease_id for resume in resumes] == [lease(1), lease(2)]
    assert desk.apply([*opening(1, lease_no=8), *opening(2, lease_no=9)]) == []
    assert len(drafter.session_nos) == 2
    assert [r.session_no for r in desk.apply(opening(3, lease_no=7))] == [3]
    assert len(drafter.session_nos) == 2


def test_leases_mean_nothing_to_another_coordinator() -> None:
    desk, drafter = make_desk()
    desk.apply(opening(1))
    desk.end_link()
    assert desk.begin_link(PeerId("another"), WELCOME) == []
    assert drafter.session_nos == ()


def test_a_lease_is_drafted_for_once() -> None:
    """A coordinator that gives one lease twice must not confuse the node."""
    desk, drafter = make_desk(max_sessions=8)
    desk.apply(opening(1))
    assert [r.session_no for r in desk.apply(opening(2, lease_no=1))] == [2]
    desk.apply([m.Close(2)])
    assert grow(desk, drafter)
    desk.end_link()
    desk.begin_link(COORDINATOR, changed(WELCOME, vocab_size=32))
    desk.apply(opening(1, lease_no=1))
    resumed = changed(OPEN, session_no=2, lease_id=lease(1), resumed=True)
    assert [r.session_no for r in desk.apply([resumed])] == [2]
    assert grow(desk, drafter)
    assert drafter.session_nos == (1,)


def test_a_verdict_that_does_not_follow_gives_the_session_back() -> None:
    desk, drafter = make_desk()
    desk.apply([*opening(1), *opening(2)])
    assert [r.session_no for r in desk.apply([verdict(1, 9, [4])])] == [1]
    assert desk.apply([verdict(1, 10, [4]), verdict(2, 3, [4])]) == []
    assert desk.num_sessions == len(drafter.session_nos) == 1


def test_it_says_once_that_it_rests(caplog: pytest.LogCaptureFixture) -> None:
    desk, _ = make_desk()
    desk.apply(opening(1))
    desk.apply(opening(2))
    with caplog.at_level(logging.INFO):
        desk.apply([m.Close(1, "too little", 20.0), m.Close(2, "too little", 20.0)])
        desk.apply(opening(3))
        desk.apply([m.Close(3, "the session has ended")])
    assert caplog.messages == ["resting for 20 s: too few of its guesses were used"]
