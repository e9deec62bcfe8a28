"""Yamux with the holes closed that a hostile or stalled peer could use.

- A write is never cancelled half-way: that would leave part of an encrypted frame on the
  connection and hang every other stream of it. A write that does not get through in time costs the
  peer its whole connection.
- What a peer may have us buffer is bounded per connection; the library only logs an overrun of its
  receive window.
- A peer may have so many streams open and no more.
- Receive windows do not grow: a draft link needs little, and a window is memory promised.
- No exception of one connection reaches the swarm's task group, where it would end the process.
"""

import logging
from typing import Final

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

_log = logging.getLogger(__name__)

WRITE_STALL_S: Final = 10.0
"""A single frame (at most 64 KiB) that takes longer than this ends the connection."""
MAX_BUFFERED_BYTES: Final = 1024 * 1024
"""Received and not yet read, all streams of a connection together. An honest sender keeps to its
window, at most 512 KiB a stream, and nobody needs two full streams at once."""
MAX_STREAMS: Final = 128
"""Open streams of one connection, both directions."""

ENVIRONMENT: Final = {
    # The library's only switches, read at each use. The first saves a window update, that is a
    # packet and a system call, per read; the second, with rtt() below, keeps windows from growing.
    "PY_YAMUX_RELEASE_ON_READ": "0",
    "PY_YAMUX_ASSUME_RTT_MS": "0",
}


class PeerOverrun(trio.TooSlowError):
    """A peer passed a limit. The type is the one on which Yamux closes the whole connection."""


class _ThriftyStream(YamuxStream):  # type: ignore[misc]  # libp2p is opaque to the checker
    """Gives window back half a window at a time, as other implementations do.

    The library's own releases whatever was read at every read: a packet, its encryption and a
    system call at both ends for every frame.
    """

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        async with self.window_lock:
            buffered = len(self.conn.stream_buffers.get(self.stream_id, b""))
            read = self.target_recv_window - (self.recv_window + buffered)
            if read < self.target_recv_window // 2:
                return
            self.recv_window += read
        await self.send_window_update(read, skip_lock=True)


class _Streams(dict[int, YamuxStream]):
    def __setitem__(self, stream_id: int, stream: YamuxStream) -> None:
        if len(self) >= MAX_STREAMS:
            raise PeerOverrun("too many open streams")
        stream.__class__ = _ThriftyStream  # made by the library, which has no other door
        super().__setitem__(stream_id, stream)


class BoundedYamux(Yamux):  # type: ignore[misc]  # libp2p is opaque to the checker
    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.streams = _Streams()

    def rtt(self) -> float:
        return 0.0

    async def start(self) -> None:
        try:
            await super().start()
        except* Exception:  # noqa: BLE001 - a connection must not take the host with it
            _log.exception("connection to %s failed", self.peer_id)
            await abort_connection(self)

    async def _read_data_body(self, length: int) -> bytes:
        buffered = sum(map(len, self.stream_buffers.values()))
        if buffered + length > MAX_BUFFERED_BYTES:
            _log.warning("%s ignores its receive window; connection closed", self.peer_id)
            raise PeerOverrun("receive window ignored")
        body: bytes = await super()._read_data_body(length)
        return body

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            deadline = trio.current_time() + WRITE_STALL_S
            with trio.CancelScope(shield=True, deadline=deadline) as scope:
                await self.secured_conn.write(data)
            if scope.cancelled_caught:
                _log.warning("%s reads nothing any more; connection closed", self.peer_id)
                await abort_connection(self)
                raise ConnectionClosedError("the peer stalled")
        await trio.lowlevel.checkpoint()


async def abort_connection(connection: Yamux) -> None:
    """Close the socket under a connection; its tasks notice and clean up. Writes nothing."""
    with trio.CancelScope(shield=True):
        try:
            await connection.secured_conn.close()
        except (BaseLibp2pError, OSError, trio.BrokenResourceError) as error:
            _log.debug("closing the connection to %s: %s", connection.peer_id, error)
