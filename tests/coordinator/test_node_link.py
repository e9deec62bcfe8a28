"""What a node is yet to be told: order, merging, size of frames, turns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from coordinator.node_link import NUM_ROUND_TRIPS, NodeLink
from specedge_p2p.names import PeerId
from specedge_p2p.wire.build import open_messages
from specedge_p2p.wire.codec import AnyMessage
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.messages import (
    MAX_FRAME_BYTES,
    Close,
    Goodbye,
    Open,
    Ping,
    Prompt,
    Release,
    Verdict,
)
from tests.support.links import HELLO, LEASE, OPEN, WELCOME, changed, verdict

CONTEXT = 1_000_000
PEER = PeerId("node")


@dataclass
class Wire:
    """A link whose other end is read when the test says so."""

    frames: list[bytes] = field(default_factory=list)
    is_blocked: bool = False
    peer_id: PeerId = PEER

    async def send(self, frame: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while self.is_blocked:  # noqa: ASYNC110 - virtual time
            await trio.sleep(1)
        self.frames.append(frame)

    async def receive(self) -> bytes:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


@dataclass
class Ends:
    node: LinkMachine
    link: NodeLink
    wire: Wire

    async def heard(self) -> list[list[AnyMessage]]:
        """What the node takes from the frames that were sent since, frame by frame."""
        await self.link.until_written()
        frames, self.wire.frames = self.wire.frames, []
        assert all(len(frame) <= MAX_FRAME_BYTES for frame in frames)
        return [list(self.node.receive(frame)) for frame in frames]


@asynccontextmanager
async def connected() -> AsyncIterator[Ends]:
    node, machine, wire = LinkMachine("node"), LinkMachine("coordinator"), Wire()
    machine.receive(node.send(HELLO))
    node.receive(machine.send(changed(WELCOME, max_context=CONTEXT)))
    link = NodeLink(wire, HELLO, machine, 0.0, 8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write_frames, trio.current_time)
        yield Ends(node, link, wire)
        nursery.cancel_scope.cancel()


def opening(link: NodeLink, num_tokens: int = 3) -> int:
    """Queue a session; returns its number."""
    session_no = link.new_session_no()
    lease = session_no.to_bytes(len(LEASE), "big")
    head = changed(OPEN, session_no=session_no, lease_id=lease, max_position=CONTEXT)
    link.post(*open_messages(head, [1] * num_tokens))
    return session_no


def kinds(frames: list[list[AnyMessage]]) -> list[type[AnyMessage]]:
    return [type(message) for frame in frames for message in frame]


async def test_verdicts_wait_for_the_prompt_and_come_before_the_close(
    autojump_clock: MockClock,
) -> None:
    async with connected() as ends:
        number = opening(ends.link, 10_000)
        ends.link.post_verdict(verdict([5], 10_000, session_no=number))
        ends.link.post_verdict(verdict([6, 7], 10_001, session_no=number, round_no=2))
        ends.link.post(Close(number))
        frames = await ends.heard()
        assert kinds(frames) == [Open, Prompt, Prompt, Prompt, Verdict, Close]
        (merged,) = (m for frame in frames for m in frame if isinstance(m, Verdict))
        assert (merged.round_no, len(merged.token_ids)) == (2, 9)


async def test_unsent_verdicts_of_a_session_are_merged(autojump_clock: MockClock) -> None:
    async with connected() as ends:
        number = opening(ends.link)
        await ends.heard()
        for position in range(3, 13):
            ends.link.post_verdict(verdict([position], position, session_no=number))
        ((merged,),) = await ends.heard()
        assert merged == verdict(list(range(3, 13)), 3, session_no=number)


async def test_prompt_chunks_alternate_with_verdicts_of_others(autojump_clock: MockClock) -> None:
    async with connected() as ends:
        first = opening(ends.link)
        await ends.heard()
        opening(ends.link, 20_000)
        ends.link.post_verdict(verdict([5], session_no=first))
        frames = await ends.heard()
        assert len(frames) == 6
        assert [type(message) for message in frames[0]] == [Verdict, Open]


async def test_law7_bounded_frames_however_much_was_missed(autojump_clock: MockClock) -> None:
    """All sessions have legal verdicts of the largest size waiting, more than one each."""
    async with connected() as ends:
        numbers = [opening(ends.link) for _ in range(8)]
        await ends.heard()
        for number in numbers:
            for start in range(3, 20_000, 4096):
                ends.link.post_verdict(verdict([1] * 4096, start, session_no=number))
        ends.link.post(*(Close(number) for number in numbers))
        opening(ends.link, 4096)
        frames = await ends.heard()
        assert kinds(frames).count(Verdict) == 8 * 5
        assert kinds(frames).count(Close) == 8
        assert len(ends.node.sessions) == 1


async def test_sessions_take_turns(autojump_clock: MockClock) -> None:
    """One with much to catch up on does not keep the others' verdicts back."""
    async with connected() as ends:
        numbers = [opening(ends.link) for _ in range(6)]
        await ends.heard()
        for number in numbers[:5]:
            for start in range(3, 40_000, 4096):
                ends.link.post_verdict(verdict([1] * 4096, start, session_no=number))
        ends.link.post_verdict(verdict([9], session_no=numbers[5]))
        frames = await ends.heard()
        (at,) = (
            i
            for i, frame in enumerate(frames)
            for message in frame
            if isinstance(message, Verdict) and message.session_no == numbers[5]
        )
        assert at <= 1


async def test_a_released_session_is_not_spoken_of(autojump_clock: MockClock) -> None:
    async with connected() as ends:
        number = opening(ends.link)
        await ends.heard()
        ends.link.machine.receive(ends.node.send(Release(number)))
        ends.link.post_verdict(verdict([5], session_no=number))
        ends.link.post(Close(number))
        ends.link.forget(number)
        ends.link.post(Ping(1))
        assert kinds(await ends.heard()) == [Ping]


async def test_a_release_before_the_coordinator_handles_it(autojump_clock: MockClock) -> None:
    """The machine knows it already, the leases do not yet."""
    async with connected() as ends:
        number = opening(ends.link)
        await ends.heard()
        ends.link.post_verdict(verdict([5], session_no=number))
        ends.link.post(Close(number), Ping(1))
        ends.link.machine.receive(ends.node.send(Release(number)))
        assert kinds(await ends.heard()) == [Ping]


async def test_nothing_is_said_after_goodbye(autojump_clock: MockClock) -> None:
    async with connected() as ends:
        ends.link.machine.receive(ends.node.send(Goodbye()))
        ends.link.post(Ping(1))
        assert await ends.heard() == []


async def test_a_frame_without_room_is_noticed(autojump_clock: MockClock) -> None:
    async with connected() as ends:
        assert ends.link.stuck_s(trio.current_time()) == 0
        ends.wire.is_blocked = True
        ends.link.post(Ping(1))
        await trio.sleep(7)
        assert ends.link.stuck_s(trio.current_time()) == pytest.approx(7)
        ends.wire.is_blocked = False
        await ends.heard()
        assert ends.link.stuck_s(trio.current_time()) == 0


async def test_only_the_first_answer_to_the_last_ping_measures(autojump_clock: MockClock) -> None:
    async with connected() as ends:
        ends.link.pinged(1, 10.0)
        ends.link.pinged(2, 12.0)
        ends.link.ponged(1, 12.5)
        assert ends.link.round_trip_s is None
        ends.link.ponged(2, 12.25)
        assert ends.link.round_trip_s == 0.25
        for _ in range(NUM_ROUND_TRIPS):
            ends.link.ponged(2, 20.0)
        assert ends.link.round_trip_s == 0.25


async def test_the_round_trip_is_what_most_of_the_last_pings_took(
    autojump_clock: MockClock,
) -> None:
    async with connected() as ends:
        took_s = []
        for nonce, round_trip_s in enumerate([0.5, 0.02, 0.02, 3.0, 0.03, *[0.08] * 7], 1):
            ends.link.pinged(nonce, 0.0)
            ends.link.ponged(nonce, round_trip_s)
            took_s.append(ends.link.round_trip_s)
        assert took_s == [0.5, *[0.02] * 3, *[0.03] * 2, *[0.08] * 6]


async def test_the_clock_of_a_ping_starts_when_it_leaves(autojump_clock: MockClock) -> None:
    """What lay before it in the queue says nothing of the link."""
    async with connected() as ends:
        ends.wire.is_blocked = True
        ends.link.post(Ping(1))
        await trio.sleep(0.5)
        ends.link.post(Ping(2))
        await trio.sleep(2.5)
        ends.wire.is_blocked = False
        await ends.heard()
        left_s = trio.current_time()
        ends.link.ponged(2, left_s + 0.01)
        assert ends.link.round_trip_s == pytest.approx(0.01)


async def test_law7_bounded_outbox(autojump_clock: MockClock) -> None:
    async with connected() as ends:
        ends.wire.is_blocked = True
        for nonce in range(4096):
            ends.link.post(Ping(nonce))
        assert not ends.link.is_too_slow
        ends.link.post(Ping(1))
        assert ends.link.is_too_slow
        assert ends.link.scope.cancel_called
