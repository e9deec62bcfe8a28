"""The link's own rules: handshake, sessions opened, resumed and gone, and hostile frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.wire import messages as m
from specedge_p2p.wire.codec import AnyMessage, Side, encode_frame
from specedge_p2p.wire.columns import pack_tokens
from specedge_p2p.wire.errors import IllegalSend, ProtocolError
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.states import LinkState
from tests.support.links import (
    HELLO,
    LEASE,
    MAX_CONTEXT,
    OPEN,
    PROMPT,
    WELCOME,
    Ends,
    changed,
    greeted,
    opened,
    proposal,
    verdict,
    with_session,
)


def assert_both_refuse(ends: Ends, message: AnyMessage, code: str, *, by: Side) -> None:
    """The sender must not send it and the receiver must not take it."""
    sender, receiver = ends.node, ends.coordinator
    if by == "coordinator":
        sender, receiver = receiver, sender
    with pytest.raises(ProtocolError) as caught:
        receiver.receive(encode_frame([message]))
    assert caught.value.code == code
    with pytest.raises(IllegalSend, match=code):
        sender.send(message)


def test_handshake() -> None:
    ends = Ends()
    assert ends.say(HELLO) == (HELLO,)
    assert ends.answer(WELCOME) == (WELCOME,)
    for machine in (ends.node, ends.coordinator):
        assert machine.state is LinkState.OPEN
        assert (machine.hello, machine.welcome) == (HELLO, WELCOME)
        assert machine.sessions == ()


def test_versions() -> None:
    assert_both_refuse(Ends(), changed(HELLO, min_version=2), "bad-hello", by="node")
    assert_both_refuse(greeted(), changed(WELCOME, version=2), "bad-welcome", by="coordinator")
    assert_both_refuse(greeted(), changed(WELCOME, version=0), "bad-welcome", by="coordinator")


def test_a_refused_handshake_has_no_lease() -> None:
    assert_both_refuse(greeted(), m.Refuse("no", "", LEASE), "bad-refuse", by="coordinator")


def test_a_refused_resume_was_asked_for() -> None:
    assert_both_refuse(opened(), m.Refuse("no", "", LEASE), "bad-refuse", by="coordinator")
    ends = opened()
    ends.say(m.Resume(LEASE, 4))
    ends.answer(m.Refuse("ahead", "", LEASE))
    assert ends.node.state is LinkState.OPEN
    assert_both_refuse(ends, m.Refuse("no", "", LEASE), "bad-refuse", by="coordinator")


def test_an_open_session() -> None:
    ends = with_session()
    for machine in (ends.node, ends.coordinator):
        view = machine.session(1)
        assert (view.session_no, view.lease_id, view.role) == (1, LEASE, "active")
        assert (view.num_committed, view.is_ready, view.max_unverified) == (3, True, 16)
        assert (view.tree_no, view.num_live, view.num_vertices, view.num_verdicts) == (0, 0, 0, 0)
        assert machine.sessions == (1,)
        assert machine.is_open(1)
        assert machine.committed(1) == 3
        assert machine.tree(1) is None
        assert not machine.is_open(2)
        with pytest.raises(KeyError):
            machine.session(2)


@pytest.mark.parametrize(
    "fields",
    [
        {"session_no": 1},
        {"max_position": MAX_CONTEXT + 1},
        {"max_position": 2},
        {"resumed": True},
    ],
)
def test_open_is_checked(fields: dict[str, object]) -> None:
    message = changed(OPEN, **({"session_no": 2} | fields))
    assert_both_refuse(with_session(), message, "bad-open", by="coordinator")


def test_session_numbers_are_never_reused() -> None:
    ends = with_session(session_no=5)
    ends.answer(m.Close(5))
    for session_no in (1, 5):
        ends_again = with_session(session_no=5)
        ends_again.answer(m.Close(5))
        again = changed(OPEN, session_no=session_no)
        assert_both_refuse(ends_again, again, "bad-open", by="coordinator")
    assert ends.answer(changed(OPEN, session_no=6))
    assert ends.node.sessions == (6,)


def test_law7_bounded_sessions() -> None:
    ends = opened()
    for session_no in range(1, HELLO.max_sessions + 1):
        ends.answer(changed(OPEN, session_no=session_no))
    ends.say(m.Capacity(1))  # takes nothing away from what is under way
    ends.say(m.Capacity(HELLO.max_sessions + 1))
    ends.say(m.Capacity(0))
    ends.answer(changed(OPEN, session_no=20))
    assert len(ends.node.sessions) == HELLO.max_sessions + 1
    assert_both_refuse(ends, changed(OPEN, session_no=21), "bad-open", by="coordinator")


def test_law7_bounded_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specedge_p2p.wire.link_machine.MAX_SESSIONS", 2)
    ends = opened()
    for number in range(2):
        ends.say(m.Resume(bytes([number] * 16), 4))
    assert_both_refuse(ends, m.Resume(LEASE, 4), "bad-resume", by="node")


def test_a_lease_is_resumed_once_at_a_time() -> None:
    ends = opened()
    ends.say(m.Resume(LEASE, 4))
    assert_both_refuse(ends, m.Resume(LEASE, 5), "bad-resume", by="node")


def test_a_resumed_session_starts_at_the_position_named() -> None:
    ends = opened()
    ends.say(m.Resume(LEASE, 4))
    ends.answer(changed(OPEN, num_tokens=6, resumed=True))
    assert ends.node.committed(1) == ends.coordinator.committed(1) == 4
    assert ends.node.session(1).is_ready
    ends.answer(verdict([7, 8], 4))
    assert ends.node.committed(1) == 6
    assert ends.say(proposal([9], [0], base_position=6))


def test_a_resumed_session_has_committed_what_the_node_knows() -> None:
    ends = opened()
    ends.say(m.Resume(LEASE, 7))
    message = changed(OPEN, num_tokens=6, resumed=True)
    assert_both_refuse(ends, message, "bad-open", by="coordinator")


def test_unknown_sessions() -> None:
    for message in (m.Close(2), verdict([1], session_no=2), m.Prompt(2, 0, b"abc")):
        assert_both_refuse(with_session(), message, "unknown-session", by="coordinator")
    for answer in (m.Release(2), proposal([1], [0], session_no=2)):
        assert_both_refuse(with_session(), answer, "unknown-session", by="node")


def test_what_crosses_a_close_is_stale() -> None:
    ends = with_session()
    crossing = ends.node.send(proposal([4], [0]), m.Release(1), m.Pong(1))
    closing = ends.coordinator.send(m.Close(1))
    assert ends.coordinator.receive(crossing) == (m.Pong(1),)
    assert ends.coordinator.num_stale == 2
    assert ends.node.receive(closing) == ()
    assert ends.node.num_stale == 1
    with pytest.raises(IllegalSend, match="unknown-session"):
        ends.node.send(proposal([5], [0]))


def test_what_crosses_a_release_is_stale() -> None:
    ends = with_session()
    releasing = ends.node.send(m.Release(1))
    crossing = ends.coordinator.send(
        verdict([4]), m.Tune(1, m.GrowthWishes()), m.Ping(1), m.Close(1)
    )
    assert ends.node.receive(crossing) == (m.Ping(1),)
    assert ends.node.num_stale == 3
    assert ends.coordinator.receive(releasing) == ()


def test_a_release_while_the_prompt_comes() -> None:
    ends = opened()
    ends.answer(OPEN)
    releasing = ends.node.send(m.Release(1))
    rest = ends.coordinator.send(m.Prompt(1, 0, pack_tokens(PROMPT)), verdict([4]))
    assert ends.node.receive(rest) == ()
    assert ends.coordinator.receive(releasing) == (m.Release(1),)
    assert not ends.coordinator.is_open(1)


def test_room_outside_of_sessions() -> None:
    ends = with_session()
    assert (ends.node.room(1), ends.node.room(2)) == (16, 0)
    ends.answer(m.Drain())
    assert ends.node.room(1) == 16
    ends.say(m.Goodbye())
    assert ends.node.room(1) == ends.coordinator.room(1) == 0


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (m.Pong(-1),),
        (m.Pong(2**70),),
        (m.Release(1, "\ud800"),),
        (m.Release(1, "r" * 513),),
        (m.Pong(object()),),  # type: ignore[arg-type]
    ],
)
def test_messages_that_cannot_be_sent(messages: tuple[AnyMessage, ...]) -> None:
    ends = with_session()
    with pytest.raises(IllegalSend):
        ends.node.send(*messages)
    assert ends.node.state is LinkState.CLOSED


def test_several_messages_in_a_frame() -> None:
    ends = with_session()
    messages = (proposal([4, 5], [0, 1]), m.Pong(3), proposal([6], [2], first_index=3))
    assert ends.say(*messages) == messages


@given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from(["node", "coordinator"]))
def test_law4_bytes_into_an_open_link(frames: list[bytes], side: Side) -> None:
    ends = with_session()
    machine = ends.node if side == "node" else ends.coordinator
    assert_law4(machine, frames)


NUMBERS = st.integers(0, 4)
HOSTILE_PROPOSALS = st.builds(
    lambda vertices, session_no, tree_no, first_index, base: proposal(
        [token for token, _ in vertices],
        [parent for _, parent in vertices],
        session_no=session_no + 1,
        tree_no=tree_no + 1,
        first_index=first_index + 1,
        base_position=base,
    ),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 6)), min_size=1, max_size=40),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.integers(0, 6),
)
HOSTILE_NODE = st.one_of(
    HOSTILE_PROPOSALS,
    st.builds(m.Release, st.integers(1, 4)),
    st.builds(m.Resume, st.just(LEASE), st.integers(1, 9)),
    st.builds(m.Capacity, NUMBERS),
    st.just(m.Goodbye()),
)
HOSTILE_COORDINATOR = st.one_of(
    st.builds(
        verdict,
        st.lists(st.integers(0, 60), max_size=4),
        st.integers(2, 9),
        session_no=st.integers(1, 4),
        num_accepted=NUMBERS,
        round_no=NUMBERS,
        restart_tree_no=NUMBERS,
    ),
    st.builds(
        lambda session_no, num_tokens, resumed: changed(
            OPEN, session_no=session_no, num_tokens=num_tokens, resumed=resumed
        ),
        st.integers(1, 4),
        st.integers(1, 6),
        st.booleans(),
    ),
    st.builds(m.Prompt, st.integers(1, 4), NUMBERS, st.binary(min_size=3, max_size=8)),
    st.builds(m.Close, st.integers(1, 4)),
    st.builds(m.Tune, NUMBERS.map(lambda n: n + 1), st.just(m.GrowthWishes(max_unverified=17))),
    st.just(m.Refuse("no", "", LEASE)),
    st.just(m.Drain()),
)


def assert_law4(machine: LinkMachine, frames: list[bytes]) -> None:
    """Every frame gives messages or a ProtocolError, and nothing but errors after the first."""
    failed = False
    for frame in frames:
        try:
            machine.receive(frame)
        except ProtocolError:
            failed = True
        else:
            assert not failed
        for session_no in machine.sessions:
            view = machine.session(session_no)
            assert view.num_live <= view.max_unverified or failed


@given(st.lists(st.lists(HOSTILE_NODE, min_size=1, max_size=3), max_size=8))
def test_law4_bytes_of_a_hostile_node(frames: list[list[AnyMessage]]) -> None:
    ends = with_session()
    assert_law4(ends.coordinator, [encode_frame(messages) for messages in frames])


@given(st.lists(st.lists(HOSTILE_COORDINATOR, min_size=1, max_size=3), max_size=8))
def test_law4_bytes_of_a_hostile_coordinator(frames: list[list[AnyMessage]]) -> None:
    ends = with_session()
    ends.say(proposal([4, 5], [0, 1]))
    assert_law4(ends.node, [encode_frame(messages) for messages in frames])
