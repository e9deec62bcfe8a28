"""Frames over a byte stream, with one task that writes and one that reads.

Callers never touch the stream. `send` puts a frame into a bounded queue and `receive` takes one
out of another, so cancelling them can neither cut a frame in two nor lose one, and a caller's
deadline never interrupts a write. Nothing here knows libp2p.
"""

from collections import deque
from typing import Final, Protocol

import trio
from trio.lowlevel import ParkingLot

from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import LinkClosed, OverlayError
from specedge_p2p.wire.codec import PREFIX_BYTES, FrameBuffer, frame_prefix
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import MAX_FRAME_BYTES

MAX_QUEUED_BYTES: Final = 256 * 1024
"""Of one direction of one link: frames that wait to be written, or to be received."""
READ_BYTES: Final = 64 * 1024
"""Asked for at once, so that many small frames cost one read."""
FLUSH_S: Final = 2.0
"""How long a close waits for what is queued."""


class ByteStream(Protocol):
    """What a link runs on."""

    async def read(self, max_bytes: int) -> bytes:
        """Some bytes, or none at the end. Raises LinkClosed. Cancelling is safe."""
        ...

    async def write(self, data: bytes) -> None:
        """Write everything. Raises LinkClosed. Bounded in time by the stream itself."""
        ...

    async def close(self) -> None:
        """Let what was written arrive, then close. Bounded in time, never raises."""
        ...

    async def abort(self) -> None:
        """Close at once. Bounded in time, never raises."""
        ...


class FramedLink:
    """A `ports.Link`; whoever makes one keeps `run` running."""

    def __init__(self, peer_id: PeerId, stream: ByteStream) -> None:
        self._peer_id = peer_id
        self._stream = stream
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._ended: Exception | None = None
        self._is_closing = False
        self._finished = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._room = ParkingLot()  # senders, until the outbox has room
        self._work = ParkingLot()  # the writer, until there is something to do
        self._drained = ParkingLot()  # the reader, until the inbox has room
        self._arrived = ParkingLot()  # receivers, until there is a frame or the end

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    async def run(self) -> None:
        """Carry frames until either side ends the link, then close the stream.

        Shielded: whoever runs this calls `aclose` in the end, which is bounded in time; so a
        cancelled owner still gets its last frames out.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read_all)
                    await self._write_all()
                    nursery.cancel_scope.cancel()
        finally:
            is_clean = self._is_closing and not self._outbox and not self._scope.cancel_called
            self._end(LinkClosed("the link was closed here"))
            with trio.CancelScope(shield=True):
                await (self._stream.close() if is_clean else self._stream.abort())
            self._finished.set()

    async def send(self, frame: bytes) -> None:
        if len(frame) > MAX_FRAME_BYTES:
            raise OverlayError(f"a frame has at most {MAX_FRAME_BYTES} bytes, not {len(frame)}")
        await trio.lowlevel.checkpoint()
        size = len(frame) + PREFIX_BYTES
        while True:
            if self._is_closing:
                raise LinkClosed("the link was closed here")
            if self._ended is not None:
                raise LinkClosed(str(self._ended))
            if self._outbox_bytes + size <= MAX_QUEUED_BYTES:
                break
            await self._room.park()
        self._outbox.append(frame_prefix(frame) + frame)
        self._outbox_bytes += size
        self._work.unpark()

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self._is_closing:
                raise LinkClosed("the link was closed here")
            if self._inbox:
                frame = self._inbox.popleft()
                self._inbox_bytes -= len(frame) + PREFIX_BYTES
                self._drained.unpark()
                return frame
            if self._ended is not None:
                raise _copy(self._ended)
            await self._arrived.park()

    async def aclose(self) -> None:
        self._is_closing = True
        self._wake_all()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(FLUSH_S):
                await self._finished.wait()
            self._scope.cancel()
            await self._finished.wait()  # bounded, because the stream's abort() is

    async def _read_all(self) -> None:
        buffer = FrameBuffer()
        try:
            while data := await self._stream.read(READ_BYTES):
                for frame in buffer.feed(data):
                    self._inbox.append(frame)
                    self._inbox_bytes += len(frame) + PREFIX_BYTES
                    self._arrived.unpark()
                while self._inbox_bytes >= MAX_QUEUED_BYTES and not self._is_closing:
                    await self._drained.park()
        except (LinkClosed, ProtocolError) as error:
            self._end(error)
        else:
            cut = " in the middle of a frame" if buffer.num_bytes else ""
            self._end(LinkClosed(f"{self._peer_id} closed the link{cut}"))
        if not self._is_closing:
            self._scope.cancel()

    async def _write_all(self) -> None:
        """Return when a close has been asked for and everything is written, or nothing can be."""
        try:
            while True:
                while not self._outbox:
                    if self._is_closing:
                        return
                    await self._work.park()
                await self._stream.write(self._take_batch())
        except LinkClosed as error:
            self._end(error)
            self._scope.cancel()

    def _take_batch(self) -> bytes:
        """Several queued frames as one write, at most about one frame's limit of bytes."""
        parts: list[bytes] = []
        size = 0
        while self._outbox and (not parts or size + len(self._outbox[0]) <= MAX_FRAME_BYTES):
            part = self._outbox.popleft()
            parts.append(part)
            size += len(part)
        self._outbox_bytes -= size
        self._room.unpark_all()
        return b"".join(parts)

    def _end(self, error: Exception) -> None:
        """Nothing more will arrive; what has arrived may still be received."""
        if self._ended is None:
            self._ended = error
        self._wake_all()

    def _wake_all(self) -> None:
        for waiting in (self._room, self._work, self._drained, self._arrived):
            waiting.unpark_all()


def _copy(error: Exception) -> Exception:
    """A fresh exception for each receiver, so that tracebacks do not pile up on one."""
    if isinstance(error, ProtocolError):
        return ProtocolError(error.code, error.text)
    return LinkClosed(str(error))
