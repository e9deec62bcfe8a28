"""One HTTP/1.1 connection: hypercorn's, which in its own server may end all others.

Hypercorn also speaks HTTP/2 and WebSocket to whoever asks for them. The gateway serves neither, so
a request to change the protocol is answered as if it had not been made, as HTTP allows.
"""

import logging

import h11
import trio
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import EventWrapper
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

_logger = logging.getLogger(__name__)

MAX_AHEAD_BYTES = 65_536
"""Read of further requests while one is being answered; then the client has to wait."""


class Connection(TCPServer):  # type: ignore[misc]  # hypercorn is untyped here
    """Ends alone, whatever its client sends."""

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

    async def _serve(self) -> None:
        raw = self.stream.socket
        async with TaskGroup() as tasks:
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


class _Http11(H11Protocol):  # type: ignore[misc]
    def listen_while_paused(self, stream: trio.SocketStream) -> None:
        self.can_read = _Pause(self.connection, stream)

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

    def __init__(self, connection: h11.Connection, stream: trio.SocketStream) -> None:
        super().__init__()
        self._connection, self._stream = connection, stream

    async def wait(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await super().wait()
            nursery.cancel_scope.cancel()

    async def _listen(self) -> None:
        num_bytes = 0
        while num_bytes < MAX_AHEAD_BYTES:
            data = await self._stream.receive_some(MAX_RECV)
            if not data:
                raise ConnectionResetError("the client left before its answer was complete")
            self._connection.receive_data(data)
            num_bytes += len(data)
