"""Frames out, with a bound; a link that replays; how long to wait for the next link."""

import math
from collections import deque
from collections.abc import Callable

import trio

from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import Link
from specedge_p2p.wire.codec import decode_frame
from specedge_p2p.wire.messages import Proposal


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
