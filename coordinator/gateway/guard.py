"""The outermost layer of every request: its id, its limits in bytes and seconds, its count."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.gateway.errors import REQUEST_ID_HEADER, error_response
from coordinator.gateway.metrics import GatewayMetrics
from coordinator.gateway.ports import Refused


@dataclass(frozen=True, slots=True)
class GuardSettings:
    max_requests: int = 1024
    """Requests in flight, all callers together; more are answered 503."""
    max_body_bytes: int = 4 * 1024 * 1024
    max_held_bytes: int = 64 * 1024 * 1024
    """Bodies of all requests in flight together, counted as they arrive: a body is read before it
    is known who sends it. More are answered 503."""
    body_timeout_s: float = 30
    """For reading a whole body; the server itself has no such limit."""


class ClientGone(Exception):
    """The client left before its request was complete."""


class Guard:
    """ASGI middleware. Reads the body first, so what is inside sees complete requests only."""

    def __init__(self, app: ASGIApp, settings: GuardSettings, metrics: GatewayMetrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._num_requests = 0
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        state = scope.setdefault("state", {})
        state["request_id"], state["since"] = request_id, trio.current_time()
        status = 500

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).setdefault(REQUEST_ID_HEADER, request_id)
            await send(message)

        self._num_requests += 1
        try:
            with self._holding() as hold:
                await self._answer(scope, receive, send_named, hold)
        finally:
            self._num_requests -= 1
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request_done(route, status)

    @contextmanager
    def _holding(self) -> Iterator[Callable[[int], None]]:
        """What counts the bytes of one request's body; they are given back when it is answered.

        Not earlier: the application keeps the body as long as it answers.
        """
        held_bytes = 0

        def hold(num_bytes: int) -> None:
            """Raises Refused(503) when all requests together would hold too much."""
            nonlocal held_bytes
            if self._held_bytes + num_bytes > self._settings.max_held_bytes:
                text = "The server holds as many request bodies as it can. Try again."
                raise Refused(503, "overloaded", text, retry_after_s=1)
            self._held_bytes += num_bytes
            held_bytes += num_bytes

        try:
            yield hold
        finally:
            self._held_bytes -= held_bytes

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, hold: Callable[[int], None]
    ) -> None:
        try:
            if self._num_requests > self._settings.max_requests:
                raise Refused(503, "overloaded", "The server is full. Try again.", retry_after_s=1)
            body = await self._read_body(scope, receive, hold)
        except ClientGone:
            return
        except Refused as refused:
            response = error_response(refused)
            response.headers["connection"] = "close"  # the rest of the body is never read
            await response(scope, receive, send)
            return
        is_given = False

        async def receive_again() -> Message:
            nonlocal is_given
            if not is_given:
                is_given = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, receive_again, send)

    async def _read_body(
        self, scope: Scope, receive: Receive, hold: Callable[[int], None]
    ) -> bytes:
        """Raises Refused(413), Refused(408) or Refused(503), ClientGone."""
        limit = self._settings.max_body_bytes
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            raise self._too_large()
        parts, size, more = [], 0, True
        with trio.move_on_after(self._settings.body_timeout_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                more = message.get("more_body", False)
                size += len(part)
                if size > limit:
                    raise self._too_large()
                hold(len(part))
                parts.append(part)
            return b"".join(parts)
        raise Refused(408, "request_timeout", "The request body did not arrive in time.")

    def _too_large(self) -> Refused:
        limit = self._settings.max_body_bytes
        return Refused(413, "request_too_large", f"The request body is over {limit} bytes.")
