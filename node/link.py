"""Frames out, with a bound, and two ways to make a link worse for the network's own tests."""

import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import Link, LinkClosed
from specedge_p2p.wire.codec import decode_frame
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import Proposal

_MAX_DELAYED_FRAMES = 256


class OutboxFull(Exception):
    """The link takes no more answers; it stalls and must end."""


class Outbox:
    """Frames on their way to the link, in order.

    Growth asks `has_room` and leaves its vertices in the tree when there is none, so a slow link
    delays proposals and nothing else. Answers are few and owed; they have room of their own.
    """

    def __init__(self, max_proposal_frames: int = 4, max_frames: int = 64) -> None:
        self._frames: deque[bytes] = deque()
        self._max_proposal_frames = max_proposal_frames
        self._max_frames = max_frames
        self._changed = trio.Event()
        self._is_closed = False
        self.num_bytes_sent = 0

    @property
    def has_room(self) -> bool:
        return len(self._frames) < self._max_proposal_frames and not self._is_closed

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def put(self, frame: bytes) -> None:
        """Queue a frame, now. Raises OutboxFull."""
        if len(self._frames) >= self._max_frames:
            raise OutboxFull(f"{self._max_frames} frames wait to be sent")
        self._frames.append(frame)
        self._changed.set()

    def close(self) -> None:
        """`drain` returns when what is queued has been sent."""
        self._is_closed = True
        self._changed.set()

    async def drain(self, link: Link, on_room: Callable[[], None]) -> None:
        """Send until closed and empty; `on_room` after every frame. Raises LinkClosed."""
        while True:
            while self._frames:
                await link.send(self._frames[0])
                self.num_bytes_sent += len(self._frames.popleft())
                on_room()
            if self._is_closed:
                return
            self._changed = trio.Event()
            await self._changed.wait()


class DelayedLink:
    """A link with an added delay for every frame, the same in both directions; for measuring."""

    def __init__(self, link: Link, one_way_s: float) -> None:
        self._link = link
        self._one_way_s = one_way_s
        self._out, self._out_end = trio.open_memory_channel[tuple[float, bytes]](
            _MAX_DELAYED_FRAMES
        )
        self._in, self._in_end = trio.open_memory_channel[tuple[float, bytes]](_MAX_DELAYED_FRAMES)
        self._failure: Exception | None = None
        self._all_sent = trio.Event()

    @property
    def peer_id(self) -> PeerId:
        return self._link.peer_id

    async def send(self, frame: bytes) -> None:
        try:
            await self._out.send((trio.current_time() + self._one_way_s, frame))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkClosed("the link is closed") from self._failure

    async def receive(self) -> bytes:
        try:
            due, frame = await self._in_end.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._failure or LinkClosed("the link is closed") from None
        # A frame taken here is lost if the wait is cancelled: callers cancel only to end the link.
        await trio.sleep_until(due)
        return frame

    async def aclose(self) -> None:
        self._out.close()
        deadline = trio.current_time() + self._one_way_s + 1.0
        with trio.CancelScope(deadline=deadline, shield=True):
            await self._all_sent.wait()
        await self._link.aclose()

    async def carry_out(self) -> None:
        with self._out_end:
            async for due, frame in self._out_end:
                await trio.sleep_until(due)
                try:
                    await self._link.send(frame)
                except LinkClosed as closed:
                    self._failure = closed
                    break
        self._all_sent.set()

    async def carry_in(self) -> None:
        with self._in:
            while True:
                try:
                    frame = await self._link.receive()
                except (LinkClosed, ProtocolError) as error:
                    self._failure = error
                    return
                await self._in.send((trio.current_time() + self._one_way_s, frame))


@asynccontextmanager
async def delayed(link: Link, round_trip_s: float) -> AsyncIterator[Link]:
    """The link with `round_trip_s` added: half for every frame out, half for every frame in."""
    if round_trip_s <= 0:
        yield link
        return
    slow = DelayedLink(link, round_trip_s / 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.carry_out)
        nursery.start_soon(slow.carry_in)
        yield slow
        nursery.cancel_scope.cancel()


class ReplayLink:
    """Sends old proposals again among the new ones: what a hostile or broken node may do."""

    def __init__(self, link: Link, every: int = 5, memory: int = 16) -> None:
        self._link = link
        self._every = every
        self._old: deque[bytes] = deque(maxlen=memory)
        self._num_sent = 0

    @property
    def peer_id(self) -> PeerId:
        return self._link.peer_id

    async def send(self, frame: bytes) -> None:
        await self._link.send(frame)
        self._num_sent += 1
        messages = decode_frame(frame, "coordinator")
        if all(isinstance(message, Proposal) for message in messages):
            self._old.append(frame)
        if self._old and self._num_sent % self._every == 0:
            await self._link.send(self._old[0])

    async def receive(self) -> bytes:
        return await self._link.receive()

    async def aclose(self) -> None:
        await self._link.aclose()


def backoff_s(
    num_failures: int, jitter: float, first_s: float = 1.0, most_s: float = 60.0
) -> float:
    """Seconds to wait before the next try: doubling, less up to half by `jitter` in [0, 1)."""
    doubled = math.ldexp(first_s, min(num_failures, 16))
    return min(most_s, doubled) * (1.0 - jitter / 2)
