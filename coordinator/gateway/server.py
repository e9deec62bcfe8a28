"""Serves an ASGI application over HTTP/1.1 in the caller's trio loop."""

import errno
import logging
import socket
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import trio
from fastapi import FastAPI
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import repr_socket_addr

from coordinator.gateway.http11 import Connection
from specedge_p2p.errors import ClearError
from specedge_p2p.tasks import TaskStatus

_logger = logging.getLogger(__name__)


class BindError(ClearError):
    """The address cannot be served; the text is one line for the person who typed it."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    graceful_timeout_s: float = 5
    """From the stop until streams that did not end themselves are cut."""
    idle_timeout_s: float = 5
    """For a connection without a request and for an unfinished request head."""
    stuck_reader_timeout_s: float = 30
    """After this long without an acknowledged byte a client is given up by the kernel."""


def parse_bind(bind: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8000` or `[::1]:8000`. Raises BindError."""
    host, separator, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (separator and host and port.isascii() and port.isdigit() and int(port) < 2**16):
        raise BindError(f"'{bind}' is not an address to serve on; write it as 127.0.0.1:8000.")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost may be any."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(bind: str, settings: ServerSettings) -> socket.socket:
    host, port = parse_bind(bind)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Accepted sockets inherit it. Without it one client that never reads would hold up the
        # end of the server for ever: its pending write is shielded from cancellation.
        timeout_ms = int(settings.stuck_reader_timeout_s * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        listener.bind((host, port))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        advice = ""
        if error.errno == errno.EADDRINUSE:
            advice = " Give another --port; 0 takes a free one."
        raise BindError(f"Cannot serve on {bind}: {reason}.{advice}") from error
    return listener


async def serve_gateway(
    app: FastAPI,
    bind: str,
    stop: trio.Event,
    *,
    settings: ServerSettings | None = None,
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set, then give running answers a few seconds to end.

    Args:
        app: the application.
        bind: host and port; port 0 takes a free one.
        stop: the event that `create_app` was given.
        settings: timeouts.
        task_status: started with the address as a URL, `http://127.0.0.1:45359`.

    Raises:
        BindError: the address is malformed, taken or not this machine's.
    """
    settings = settings or ServerSettings()
    with _bind(bind, settings) as listener:
        config = Config()
        config.keep_alive_timeout = settings.idle_timeout_s
        config.include_server_header = False
        config.errorlog = _logger
        config.accesslog = None
        # read_timeout stays off: it would cut every stream whose client, rightly, sends nothing.
        listener.listen(config.backlog)
        address = repr_socket_addr(listener.family, listener.getsockname())
        context = WorkerContext(None)
        async with trio.open_nursery() as connections:

            async def serve_one(stream: trio.SocketStream) -> None:
                await Connection(ASGIWrapper(app), config, context, {}, stream).run()

            async with trio.open_nursery() as accepting:
                listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
                accepting.start_soon(
                    partial(trio.serve_listeners, serve_one, listeners, handler_nursery=connections)
                )
                task_status.started(f"http://{address}")
                await stop.wait()
                accepting.cancel_scope.cancel()
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + settings.graceful_timeout_s
