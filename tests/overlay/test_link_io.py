from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from specedge_p2p.names import PeerId
from specedge_p2p.overlay.link_io import FLUSH_S, MAX_QUEUED_BYTES, FramedLink
from specedge_p2p.overlay.ports import LinkClosed, OverlayError
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import MAX_FRAME_BYTES

PEER = PeerId("peer")


class TrioStream:
    """A trio stream as a ByteStream; `frozen` makes writes hang as a full socket does."""

    def __init__(self, stream: trio.StapledStream) -> None:
        self.stream = stream
        self.frozen = False
        self.slow_s = 0.0
        self.num_writes = 0

    async def read(self, max_bytes: int) -> bytes:
        try:
            return bytes(await self.stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed(str(error)) from None

    async def write(self, data: bytes) -> None:
        self.num_writes += 1
        if self.frozen:
            await trio.sleep_forever()
        await trio.sleep(self.slow_s)
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed(str(error)) from None

    async def close(self) -> None:
        await self.stream.aclose()

    async def abort(self) -> None:
        await trio.aclose_forcefully(self.stream)


@asynccontextmanager
async def links() -> AsyncIterator[tuple[FramedLink, FramedLink, TrioStream]]:
    left, right = map(TrioStream, trio.testing.lockstep_stream_pair())
    one, other = FramedLink(PEER, left), FramedLink(PEER, right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(other.run)
        try:
            yield one, other, left
        finally:
            await one.aclose()
            await other.aclose()


@asynccontextmanager
async def raw_end() -> AsyncIterator[tuple[FramedLink, trio.StapledStream]]:
    ours, theirs = trio.testing.memory_stream_pair()
    link = FramedLink(PEER, TrioStream(ours))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        try:
            yield link, theirs
        finally:
            await link.aclose()


async def test_frames_arrive_whole_and_in_order(autojump_clock: None) -> None:
    async with links() as (one, other, _):
        sent = [bytes([n % 256]) * n for n in (0, 1, 2, 300, MAX_FRAME_BYTES)]
        for frame in sent:
            await one.send(frame)
        assert [await other.receive() for _ in sent] == sent
        await other.send(b"back")
        assert await one.receive() == b"back"
        assert one.peer_id == PEER


async def test_frames_cut_anywhere_are_put_together(autojump_clock: None) -> None:
    async with raw_end() as (link, raw):
        for byte in b"\0\0\0\2hi\0\0\0\0\0\0\0\1!":
            await raw.send_all(bytes([byte]))
        assert [await link.receive() for _ in range(3)] == [b"hi", b"", b"!"]


async def test_small_frames_share_a_write(autojump_clock: None) -> None:
    async with links() as (one, other, stream):
        stream.slow_s = 1.0
        for _ in range(100):
            await one.send(b"x" * 100)
        for _ in range(100):
            await other.receive()
        assert stream.num_writes <= 3


async def test_law4_bytes_that_announce_too_much_are_one_protocol_error(
    autojump_clock: None,
) -> None:
    async with raw_end() as (link, raw):
        await raw.send_all(b"\0\0\0\1!" + (MAX_FRAME_BYTES + 1).to_bytes(4) + b"x")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):  # it stays so
            with pytest.raises(ProtocolError):
                await link.receive()
        with pytest.raises(LinkClosed):
            await link.send(b"x")
        assert await raw.receive_some() == b""


async def test_end_in_the_middle_of_a_frame_is_said(autojump_clock: None) -> None:
    async with raw_end() as (link, raw):
        await raw.send_all(b"\0\0\0\5hel")
        await raw.aclose()
        with pytest.raises(LinkClosed, match="middle of a frame"):
            await link.receive()


async def test_what_arrived_before_the_end_is_still_received(autojump_clock: None) -> None:
    async with raw_end() as (link, raw):
        await raw.send_all(b"\0\0\0\1a\0\0\0\1b")
        await raw.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [await link.receive(), await link.receive()] == [b"a", b"b"]
        with pytest.raises(LinkClosed):
            await link.receive()


async def test_law7_bounded_queues_give_back_pressure(autojump_clock: None) -> None:
    async with links() as (one, _, stream):
        stream.frozen = True
        frame = bytes(32 * 1024)
        num_sent = 0
        with trio.move_on_after(60):
            while True:
                await one.send(frame)
                num_sent += 1
        assert num_sent * len(frame) <= MAX_QUEUED_BYTES + 2 * MAX_FRAME_BYTES


async def test_law7_bounded_inbox_stops_the_reading(autojump_clock: None) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()  # no buffer of its own
    link = FramedLink(PEER, TrioStream(ours))
    frame = (32 * 1024).to_bytes(4) + bytes(32 * 1024)
    num_taken = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        with trio.move_on_after(60):
            while True:
                await theirs.send_all(frame)
                num_taken += 1
        assert MAX_QUEUED_BYTES <= num_taken * len(frame) <= MAX_QUEUED_BYTES + 2 * MAX_FRAME_BYTES
        for _ in range(num_taken):
            assert await link.receive() == frame[4:]
        await link.aclose()


async def test_cancelled_send_does_not_poison_the_link(autojump_clock: None) -> None:
    async with links() as (one, other, _):
        sent = []
        for number in range(200):
            with trio.move_on_after(0.001 if number % 3 else 0):
                frame = number.to_bytes(2) * 10_000
                await one.send(frame)
                sent.append(frame)
            with trio.move_on_after(0.001):
                got = await other.receive()
                assert got == sent.pop(0)
        for frame in sent:
            assert await other.receive() == frame


async def test_close_flushes_then_the_other_end_sees_it(autojump_clock: None) -> None:
    async with links() as (one, other, _):
        for number in range(20):
            await one.send(bytes([number]) * 1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.aclose)
            for number in range(20):
                assert await other.receive() == bytes([number]) * 1000
            with pytest.raises(LinkClosed):
                await other.receive()
        with pytest.raises(LinkClosed, match="here"):
            await one.send(b"x")
        with pytest.raises(LinkClosed, match="here"):
            await one.receive()
        await one.aclose()


async def test_close_of_a_stalled_link_is_bounded_in_time(autojump_clock: None) -> None:
    async with links() as (one, _, stream):
        stream.frozen = True
        await one.send(b"x")
        start_s = trio.current_time()
        await one.aclose()
        assert trio.current_time() - start_s <= FLUSH_S + 0.1


async def test_cancelled_owner_still_gets_its_last_frame_out(autojump_clock: None) -> None:
    ours, theirs = map(TrioStream, trio.testing.memory_stream_pair())
    link, other = FramedLink(PEER, ours), FramedLink(PEER, theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.run)
        async with trio.open_nursery() as owner:
            owner.start_soon(link.run)
            await link.send(b"good-bye")
            owner.cancel_scope.cancel()
            await link.aclose()
        assert await other.receive() == b"good-bye"
        await other.aclose()


async def test_waiting_receiver_and_sender_wake_at_the_close(autojump_clock: None) -> None:
    async with links() as (one, _, stream):
        stream.frozen = True

        async def wait_to_receive() -> None:
            with pytest.raises(LinkClosed):
                await one.receive()

        async def wait_to_send() -> None:
            for _ in range(3):  # the first is with the writer, the rest fills the queue
                await one.send(bytes(MAX_FRAME_BYTES))
            with pytest.raises(LinkClosed):
                await send_two()

        async def send_two() -> None:
            for _ in range(2):
                await one.send(bytes(MAX_FRAME_BYTES))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_to_receive)
            nursery.start_soon(wait_to_send)
            await trio.testing.wait_all_tasks_blocked()
            await one.aclose()


async def test_law7_bounded_frames(autojump_clock: None) -> None:
    async with links() as (one, _, _s):
        with pytest.raises(OverlayError, match="at most"):
            await one.send(bytes(MAX_FRAME_BYTES + 1))
