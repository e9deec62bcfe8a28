"""One HTTP/1.1 connection: hypercorn's, which in its own server may end all others.

Hypercorn also speaks HTTP/2 and WebSocket to whoever asks for them. The gateway serves neither, so
a request to change the protocol is answered as if it had not been made, as HTTP allows.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import EventWrapper
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ConnectionState, Scope
from hypercorn.utils import parse_socket_addr

_logger = logging.getLogger(__name__)

Send = Callable[[Any], Awaitable[None]]
Put = Callable[[ASGIReceiveEvent], Awaitable[None]]

MAX_AHEAD_BYTES = 65_536
"""Kept of further requests while one is being answered; then the client has to wait."""


class Connection(TCPServer):  # type: ignore[misc]  # hypercorn is untyped here
    """Ends alone, whatever its client sends."""

    _has_heard_all = False

    async def run(self) -> None:
        """Serve one request after the other until either side has had enough."""
        try:
            try:
                await self._serve()
            finally:
                await self._close()
        except* OSError:
            pass  # the client left
        except* Exception as group:  # a connection must not take the gateway with it
            _logger.debug("a connection failed", exc_info=group)

    async def protocol_send(self, event: Event) -> None:
        """Write to the client, or hear what becomes of the connection."""
        if self._has_heard_all and isinstance(event, Updated) and event.idle:
            await self._close()  # no other request can come
            return
        try:
            await super().protocol_send(event)
        except trio.BusyResourceError:  # the other task is closing it
            await self.protocol.handle(Closed())

    async def _serve(self) -> None:
        raw = self.stream.socket
        async with _Tasks() as tasks:
            self._task_group = tasks
            self.protocol = _Http11(
                self.app,
                self.config,
                self.context,
                tasks,
                ConnectionState(self.state),
                False,
                parse_socket_addr(raw.family, raw.getpeername()),
                parse_socket_addr(raw.family, raw.getsockname()),
                self.protocol_send,
            )
            self.protocol.listen_while_paused(self.stream)
            await self.idle_task.restart(tasks, self._idle_timeout)
            await self._read_data()
            self._has_heard_all = True
            await self.idle_task.stop()


class _Tasks(TaskGroup):  # type: ignore[misc]
    """Applications that can be told of the end though they do not listen.

    In hypercorn an application that answered early, with a full queue of what it did not read, and
    a reader that waits to put more into that queue, wait for each other after the client has left.
    """

    async def spawn_app(self, app: AppWrapper, config: Config, scope: Scope, send: Send) -> Put:
        into, events = trio.open_memory_channel[ASGIReceiveEvent](config.max_app_queue_size)

        async def put(event: ASGIReceiveEvent) -> None:
            if event["type"] != "http.disconnect":
                await into.send(event)
                return
            with suppress(trio.ClosedResourceError):
                try:
                    into.send_nowait(event)
                except trio.WouldBlock:
                    into.close()  # and whoever waits there is woken by an error

        async def receive() -> ASGIReceiveEvent:
            try:
                return await events.receive()
            except trio.EndOfChannel:
                return {"type": "http.disconnect"}

        threads = trio.to_thread.run_sync, trio.from_thread.run
        self._nursery.start_soon(_handle, app, config, scope, receive, send, *threads)
        return put


class _Http11(H11Protocol):  # type: ignore[misc]
    is_over = False
    """No further request is answered: the last answer was cut, or the server ends."""

    def listen_while_paused(self, stream: trio.SocketStream) -> None:
        self.can_read = _Pause(self, stream)

    async def tell_gone(self) -> None:
        """The client sends no more. A stream ends by that, a short answer is still given."""
        if self.stream is not None and self.stream.app_put is not None:
            await self.stream.app_put({"type": "http.disconnect"})

    async def _maybe_recycle(self) -> None:
        both = {self.connection.our_state, self.connection.their_state}
        self.is_over = both != {h11.DONE} or self.context.terminated.is_set()
        # It tells the application of its stream's end, and that cancels the task it runs in.
        with trio.CancelScope(shield=True):
            await super()._maybe_recycle()

    async def _check_protocol(self, event: h11.Request) -> None:
        """No HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        """No WebSocket."""
        kept = [(name, value) for name, value in request.headers if name != b"upgrade"]
        version, target = request.http_version, request.target
        plain = h11.Request(
            method=request.method, target=target, headers=kept, http_version=version
        )
        await super()._create_stream(plain)


class _Pause(EventWrapper):  # type: ignore[misc]
    """Set when the next request may begin.

    Hypercorn reads nothing while it waits for this with bytes of a further request at hand, so it
    would not hear that the client has left, and the answer would go on for nobody.
    """

    def __init__(self, protocol: _Http11, stream: trio.SocketStream) -> None:
        super().__init__()
        self._protocol, self._stream = protocol, stream

    async def wait(self) -> None:
        if self._protocol.is_over:
            raise ConnectionAbortedError("a further request will not be answered")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await super().wait()
            nursery.cancel_scope.cancel()

    async def _listen(self) -> None:
        connection = self._protocol.connection
        while len(connection.trailing_data[0]) < MAX_AHEAD_BYTES:
            data = await self._stream.receive_some(MAX_RECV)
            connection.receive_data(data)
            if not data:
                await self._protocol.tell_gone()
                break
