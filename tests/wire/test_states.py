"""Every message in every state, sent and received."""

import pytest

from specedge_p2p.wire import messages as m
from specedge_p2p.wire.codec import AnyMessage, Side, encode_frame
from specedge_p2p.wire.errors import IllegalSend, ProtocolError
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.states import LinkState
from tests.support.links import (
    HELLO,
    LEASE,
    OPEN,
    WELCOME,
    Ends,
    changed,
    greeted,
    proposal,
    verdict,
    with_session,
)

# One message of each kind that is legal in the open states built below.
MESSAGES: dict[str, AnyMessage] = {
    "Hello": HELLO,
    "Proposal": proposal([4, 5], [0, 1]),
    "Pong": m.Pong(7),
    "Capacity": m.Capacity(2),
    "Release": m.Release(1),
    "Resume": m.Resume(b"r" * 16, 4),
    "ReceiptRequest": m.ReceiptRequest(0),
    "Goodbye": m.Goodbye(),
    "Welcome": WELCOME,
    "Refuse": m.Refuse("no", "why"),
    "Refuse to resume": m.Refuse("no", "why", LEASE),
    "Open": changed(OPEN, session_no=2),
    "Prompt": m.Prompt(2, 0, b"\x01\x00\x00"),
    "Verdict": verdict([4]),
    "Tune": m.Tune(1, m.GrowthWishes(max_unverified=20)),
    "Receipt": m.Receipt(b"envelope"),
    "Ping": m.Ping(7),
    "Drain": m.Drain(),
    "Close": m.Close(1),
}
NODE_SAYS = frozenset(
    ["Hello", "Proposal", "Pong", "Capacity", "Release", "Resume", "ReceiptRequest", "Goodbye"]
)
IN_SESSION = {"Proposal", "Pong", "Capacity", "Release", "Resume", "ReceiptRequest", "Goodbye"} | {
    "Refuse to resume",
    "Verdict",
    "Tune",
    "Receipt",
    "Ping",
    "Close",
    "Prompt",
}
LEGAL: dict[str, set[str]] = {
    "start": {"Hello"},
    "greeted": {"Welcome", "Refuse", "Goodbye"},
    "open": IN_SESSION | {"Open", "Drain"},
    "draining": IN_SESSION,
    "closed": set(),
}
AFTER: dict[tuple[str, str], LinkState] = {
    ("start", "Hello"): LinkState.GREETED,
    ("greeted", "Welcome"): LinkState.OPEN,
    ("greeted", "Refuse"): LinkState.CLOSED,
    ("greeted", "Goodbye"): LinkState.CLOSED,
    ("open", "Drain"): LinkState.DRAINING,
    ("open", "Goodbye"): LinkState.CLOSED,
    ("draining", "Goodbye"): LinkState.CLOSED,
}


def ends_in(state: str, message: str) -> Ends:
    """Both ends in a state; sessions 1 (ready) and 2 (prompt due, unless it is to be opened)."""
    if state == "start":
        return Ends()
    if state == "greeted":
        return greeted()
    ends = with_session()
    ends.say(m.Resume(LEASE, 3))
    if message == "Prompt":
        ends.answer(changed(OPEN, session_no=2))
    if state == "draining":
        ends.answer(m.Drain())
    if state == "closed":
        ends.say(m.Goodbye())
    return ends


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("state", LEGAL)
def test_law4_bytes_every_message_received_in_every_state(state: str, name: str) -> None:
    ends = ends_in(state, name)
    receiver = ends.coordinator if name in NODE_SAYS else ends.node
    message, frame = MESSAGES[name], encode_frame([MESSAGES[name]])
    if name in LEGAL[state]:
        assert receiver.receive(frame) == (message,)
        assert receiver.state is AFTER.get((state, name), LinkState(state))
    elif state == "closed" and name not in NODE_SAYS:  # the node said Goodbye: this crossed it
        assert receiver.receive(frame) == ()
        assert receiver.num_stale == 1
    else:
        with pytest.raises(ProtocolError):
            receiver.receive(frame)
        assert receiver.state is LinkState.CLOSED


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("state", LEGAL)
def test_every_message_sent_in_every_state(state: str, name: str) -> None:
    ends = ends_in(state, name)
    sender = ends.node if name in NODE_SAYS else ends.coordinator
    if name in LEGAL[state]:
        assert sender.send(MESSAGES[name]) == encode_frame([MESSAGES[name]])
        assert sender.state is AFTER.get((state, name), LinkState(state))
    else:
        with pytest.raises(IllegalSend):
            sender.send(MESSAGES[name])
        assert sender.state is LinkState.CLOSED


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("state", LEGAL)
def test_law4_bytes_no_end_hears_its_own_words(state: str, name: str) -> None:
    ends = ends_in(state, name)
    receiver = ends.node if name in NODE_SAYS else ends.coordinator
    with pytest.raises(ProtocolError):
        receiver.receive(encode_frame([MESSAGES[name]]))


@pytest.mark.parametrize("side", ["node", "coordinator"])
def test_after_an_error_everything_is_an_error(side: Side) -> None:
    machine = LinkMachine(side)
    for frame in (b"", encode_frame([HELLO]), encode_frame([WELCOME])):
        with pytest.raises(ProtocolError):
            machine.receive(frame)
    with pytest.raises(IllegalSend):
        machine.send(HELLO)


def test_a_refusal_may_cross_a_farewell() -> None:
    ends = greeted()
    farewell = ends.node.send(m.Goodbye())
    refusal = ends.coordinator.send(m.Refuse("full", "come back later"))
    assert ends.coordinator.receive(farewell) == ()
    assert ends.node.receive(refusal) == ()
    assert (ends.node.num_stale, ends.coordinator.num_stale) == (1, 1)


def test_nothing_follows_a_farewell_in_its_frame() -> None:
    ends = with_session()
    with pytest.raises(ProtocolError, match="out-of-turn"):
        ends.coordinator.receive(encode_frame([m.Goodbye(), m.Pong(1)]))
