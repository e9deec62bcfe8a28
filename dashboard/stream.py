"""Snapshots as server-sent events, one each period, for as long as the viewer stays."""

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dashboard.snapshot import Feed

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Viewers:
    """How many streams are open; each costs a connection and a write a second."""

    def __init__(self, limit: int) -> None:
        self.limit, self.num_open = limit, 0

    @property
    def is_full(self) -> bool:
        return self.num_open >= self.limit


class SnapshotStream(Response):
    def __init__(self, feed: Feed, viewers: Viewers, stop: trio.Event) -> None:
        super().__init__()
        self._feed, self._viewers, self._stop = feed, viewers, stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._viewers.num_open += 1
        try:
            async with trio.open_nursery() as nursery:

                async def leave() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    nursery.cancel_scope.cancel()

                nursery.start_soon(leave)
                await self._write(send)
                nursery.cancel_scope.cancel()
        finally:
            self._viewers.num_open -= 1

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        while not self._stop.is_set():
            body = b"data: " + await self._feed.latest() + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
            with trio.move_on_after(self._feed.period_s):
                await self._stop.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
