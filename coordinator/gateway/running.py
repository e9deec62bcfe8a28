"""One generation on behalf of one connected client: it ends when either of them leaves."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import trio
from starlette.types import Receive

from coordinator.gateway.limits import RequestLimits
from coordinator.gateway.metrics import GatewayMetrics
from coordinator.gateway.ports import (
    FinishEvent,
    GenerationEvent,
    GenerationRequest,
    Generations,
    GuessedToken,
    Refused,
)
from coordinator.gateway.shapes import FullText

T = TypeVar("T")


def stopping_refusal() -> Refused:
    return Refused(503, "shutting_down", "The server is shutting down.", retry_after_s=2)


def lost_refusal() -> Refused:
    return Refused(500, "generation_lost", "The generation ended without a result.")


async def wait_until_gone(receive: Receive) -> None:
    """Return when the client has left; the request body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(
    receive: Receive, stop: trio.Event, work: Callable[[], Awaitable[T]]
) -> T | None:
    """Do `work`, cancelled when the client leaves (None) or the server stops (Refused 503)."""
    results: list[T] = []
    refusals: list[Refused] = []
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            await wait_until_gone(receive)
            nursery.cancel_scope.cancel()

        async def end() -> None:
            await stop.wait()
            refusals.append(stopping_refusal())
            nursery.cancel_scope.cancel()

        nursery.start_soon(leave)
        nursery.start_soon(end)
        # Caught in here: a nursery would wrap it in a group.
        try:
            results.append(await work())
        except Refused as refused:
            refusals.append(refused)
        nursery.cancel_scope.cancel()
    if results:
        return results[0]
    if refusals:
        raise refusals[0]
    return None


@dataclass(frozen=True, slots=True)
class Running:
    """A request that may be run once, with the limits and counts that go with it."""

    generations: Generations
    limits: RequestLimits
    metrics: GatewayMetrics
    wanted: Callable[[], Awaitable[GenerationRequest]]
    """Makes the request, which may be work: it is done once the caller's place is taken."""
    caller: str
    """Whose place among the concurrent generations it takes."""
    since: float
    """trio time at which the request came in."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[GenerationEvent]]:
        """The generation's events. Raises Refused on entering and while iterating."""
        with self.limits.running(self.caller):
            request = await self.wanted()
            async with self.generations.generate(request) as events:
                self.metrics.generation_started()
                try:
                    yield events
                finally:
                    self.metrics.generation_left()
                    if isinstance(events, AsyncGenerator):
                        await events.aclose()

    def observe(self, event: GenerationEvent, *, is_first: bool = False) -> None:
        """Count an event of this generation."""
        if isinstance(event, FinishEvent):
            self.metrics.generation_finished(event.stats)
        elif is_first:
            self.metrics.first_text(trio.current_time() - self.since)

    async def collect(self) -> FullText:
        """Run to the end. Raises Refused."""
        texts: list[str] = []
        tokens: list[GuessedToken] = []
        refusal = lost_refusal()
        async with self.open() as events:
            # Caught in here: contexts on the way out may wrap it in a group.
            try:
                async for event in events:
                    self.observe(event, is_first=not texts)
                    if isinstance(event, FinishEvent):
                        return FullText("".join(texts), tuple(tokens), event.reason, event.stats)
                    texts.append(event.text)
                    tokens.extend(event.tokens)
            except Refused as refused:
                refusal = refused
        raise refusal
