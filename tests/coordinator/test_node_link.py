"""What a node is yet to be told: order, merging, and frames that stay below their limit."""

from coordinator.node_link import MAX_OUTBOX, NodeLink
from specedge_p2p.wire import messages as m
from specedge_p2p.wire.build import open_messages
from specedge_p2p.wire.columns import pack_tokens
from tests.support.links import OPEN, changed
from tests.support.node_links import CONTEXT, open_link, write_all

LONG = [7] * m.PROMPT_CHUNK_TOKENS


def opening(node: NodeLink, num_tokens: int = 3) -> int:
    number = node.new_session_no()
    lease = number.to_bytes(16, "big")
    head = changed(OPEN, session_no=number, lease_id=lease, max_position=CONTEXT)
    node.post(*open_messages(head, [7] * num_tokens))
    return number


def verdict(session_no: int, position: int, token_ids: list[int]) -> m.Verdict:
    return m.Verdict(session_no, 1, position, pack_tokens(token_ids), 0)


async def test_law7_bounded_frames_hold_what_fits_however_much_waits() -> None:
    """Many sessions with much to tell at once: after a long stall, or a resume of all of them."""
    node, wire = await open_link()
    numbers = [opening(node) for _ in range(24)]
    await write_all(node)
    for number in numbers:
        node.post_verdict(verdict(number, 3, LONG))
        node.post_verdict(verdict(number, 3 + len(LONG), LONG))
    await write_all(node)
    for number in numbers:
        assert wire.machine.committed(number) == 3 + 2 * len(LONG)
    for number in numbers:
        for part in range(6):
            node.post_verdict(verdict(number, 3 + (2 + part) * len(LONG), LONG))
        node.post(m.Close(number))
    await write_all(node)
    assert sum(type(message) is m.Verdict for message in wire.messages) == 8 * len(numbers)
    assert wire.machine.sessions == ()


async def test_verdicts_follow_their_prompt_and_precede_their_close() -> None:
    node, wire = await open_link()
    first, second = opening(node), opening(node, num_tokens=3 * len(LONG))
    node.post_verdict(verdict(first, 3, [5]))
    node.post_verdict(verdict(second, 3 * len(LONG), [6]))
    node.post(m.Close(first), m.Close(second))
    await write_all(node)
    kinds = [(type(x).__name__, x.session_no) for x in wire.messages]  # type: ignore[union-attr]
    assert kinds.index(("Verdict", first)) < kinds.index(("Close", first))
    assert kinds.count(("Prompt", second)) == 3
    assert kinds.index(("Verdict", second)) < kinds.index(("Close", second))
    assert max(i for i, kind in enumerate(kinds) if kind == ("Prompt", second)) < kinds.index(
        ("Verdict", second)
    )
    assert wire.machine.sessions == ()


async def test_unsent_verdicts_of_a_session_are_merged() -> None:
    node, wire = await open_link()
    number = opening(node)
    await write_all(node)
    wire.frames.clear()
    for position in range(3, 13):
        node.post_verdict(verdict(number, position, [position]))
    await write_all(node)
    assert wire.messages == [verdict(number, 3, list(range(3, 13)))]


async def test_nothing_more_is_said_about_a_released_session() -> None:
    node, wire = await open_link()
    number, other = opening(node), opening(node)
    await write_all(node)
    wire.frames.clear()
    node.post_verdict(verdict(number, 3, [5]))
    node.post_verdict(verdict(other, 3, [5]))
    node.post(m.Close(number))
    node.machine.receive(wire.machine.send(m.Release(number)))
    node.forget(number)
    await write_all(node)
    assert wire.messages == [verdict(other, 3, [5])]


async def test_law7_bounded_a_node_that_does_not_read_is_given_up() -> None:
    node, _ = await open_link()
    for nonce in range(MAX_OUTBOX):
        node.post(m.Ping(nonce))
    assert not node.is_too_slow
    node.post(m.Ping(0))
    assert node.is_too_slow
    assert node.scope.cancel_called


async def test_only_the_answer_to_the_last_ping_measures() -> None:
    node, _ = await open_link()
    node.pinged(1, 10.0)
    node.pinged(2, 12.0)
    node.ponged(1, 12.5)
    assert node.round_trip_s is None
    node.ponged(2, 12.25)
    assert node.round_trip_s == 0.25
