"""A generation as server-sent events.

Written as a bare ASGI response and not as a generator of bytes: the generation's context must be
left in the task that entered it, at once and in order, however the stream ends.
"""

from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.gateway.errors import error_body, error_response
from coordinator.gateway.ports import FinishEvent, GenerationEvent, Refused, TextEvent
from coordinator.gateway.running import Running, lost_refusal, stopping_refusal, wait_until_gone
from coordinator.gateway.shapes import Json, Shape, sources_json, stats_json
from specedge_p2p.tasks import TaskStatus

MAX_EVENTS_WAITING = 64
"""Events between generation and socket; a slow reader then holds its own generation back."""

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_DONE = b"data: [DONE]\n\n"

_Item = GenerationEvent | Refused


def _data(chunk: Json) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


class ChunkWriter:
    """Turns events into the bytes of chunks. Pure."""

    def __init__(self, shape: Shape, *, wants_usage: bool, wants_sources: bool) -> None:
        self._shape = shape
        self._wants_usage, self._wants_sources = wants_usage, wants_sources

    def opening(self) -> bytes:
        chunk = self._shape.opening()
        return b"" if chunk is None else _data(chunk)

    def encode(self, item: _Item) -> bytes:
        if isinstance(item, Refused):
            # Without [DONE]: that is how the client tells a broken stream from a whole one.
            return _data(error_body(item))
        if isinstance(item, TextEvent):
            return self._text(item)
        chunks = [self._shape.finish(item.reason)]
        if self._wants_usage:
            chunks.append(self._shape.usage(item.stats))
        if self._wants_sources:
            chunks[-1] |= {"specedge": stats_json(item.stats)}
        return b"".join(map(_data, chunks)) + _DONE

    def _text(self, event: TextEvent) -> bytes:
        if self._wants_sources:
            return _data(self._shape.delta(event.text) | {"specedge": sources_json(event.tokens)})
        # Text may be held back: it could be part of a stop string or of a character.
        return _data(self._shape.delta(event.text)) if event.text else b""


class GenerationStream(Response):
    """Answers with an error response when the generation is refused before it began."""

    def __init__(self, running: Running, writer: ChunkWriter, stop: trio.Event) -> None:
        super().__init__()
        self._running, self._writer, self._stop = running, writer, stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        into, outbox = trio.open_memory_channel[_Item](MAX_EVENTS_WAITING)
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                await wait_until_gone(receive)
                nursery.cancel_scope.cancel()

            nursery.start_soon(leave)
            refused: Refused | None = await nursery.start(self._pump, into)
            if refused is None:
                await self._write(outbox, send)
            else:
                await error_response(refused)(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _pump(
        self,
        into: trio.MemorySendChannel[_Item],
        task_status: TaskStatus[Refused | None],
    ) -> None:
        """Move events into the channel; the last one is a FinishEvent or a Refused."""
        last: _Item | None = None
        is_open = False
        async with into:
            async with trio.open_nursery() as nursery:

                async def end() -> None:
                    nonlocal last
                    await self._stop.wait()
                    last = stopping_refusal()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(end)
                try:
                    async with self._running.open() as events:
                        is_open = True
                        task_status.started(None)
                        last = await self._move(events, into)
                except Refused as refused:
                    last = refused
                nursery.cancel_scope.cancel()
            if is_open:
                await into.send(lost_refusal() if last is None else last)
            else:
                task_status.started(last if isinstance(last, Refused) else lost_refusal())

    async def _move(
        self, events: AsyncIterator[GenerationEvent], into: trio.MemorySendChannel[_Item]
    ) -> _Item:
        """Pass text on and return how it ended. Refused is caught in its context."""
        is_first = True
        try:
            async for event in events:
                self._running.observe(event, is_first=is_first)
                is_first = False
                if isinstance(event, FinishEvent):
                    return event
                await into.send(event)
        except Refused as refused:
            return refused
        return lost_refusal()

    async def _write(self, outbox: trio.MemoryReceiveChannel[_Item], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        data = self._writer.opening()
        if data:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        async with outbox:
            async for item in outbox:
                # One write for all that is waiting: no delay while the reader keeps up.
                parts = [self._writer.encode(item)]
                with suppress(trio.WouldBlock, trio.EndOfChannel):
                    while len(parts) < MAX_EVENTS_WAITING:
                        parts.append(self._writer.encode(outbox.receive_nowait()))
                body = b"".join(parts)
                if body:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
