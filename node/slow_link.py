"""A link made worse, for measuring: delay, jitter, loss and churn, repeatable by a seed."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import trio

from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import Link, LinkClosed
from specedge_p2p.wire.errors import ProtocolError

_MAX_DELAYED_FRAMES = 256
_JITTER_SIGMA = 1.0
_RETRANSMISSION_ROUND_TRIPS = 1.2
_MOST_LOSSES = 16


@dataclass(frozen=True, slots=True)
class LinkConditions:
    """What is added to a link.

    Args:
        round_trip_s: half of it to every frame out, half to every frame in.
        jitter_s: mean of a further, random round trip, half of it each way. Log-normal with
            sigma 1, so a frame in a hundred waits six times as long as the mean.
        loss: probability that a frame is lost and arrives a round trip and a fifth later, as TCP
            would send it again after a fast retransmission; nothing overtakes it.
        churn_s: mean time until the link is dropped, uniform between half and one and a half of
            it; 0 never drops it.
        seed: of all that is random here.
    """

    round_trip_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    churn_s: float = 0.0
    seed: str = ""

    @property
    def is_plain(self) -> bool:
        return not (self.round_trip_s or self.jitter_s or self.churn_s)


class Transit:
    """When frames of one direction arrive. Pure: time is an argument, randomness is seeded."""

    def __init__(self, conditions: LinkConditions, direction: str) -> None:
        self._conditions = conditions
        self._random = Random(f"{conditions.seed}/{direction}")  # noqa: S311 - for measuring
        self._last_due_s = -math.inf

    def due_s(self, now_s: float) -> float:
        """The arrival of a frame sent now; never before that of an earlier frame."""
        conditions = self._conditions
        delay_s = conditions.round_trip_s / 2
        if conditions.jitter_s:
            # a log-normal's mean is exp(mu + sigma^2 / 2)
            mu = math.log(conditions.jitter_s) - math.log(2) - _JITTER_SIGMA**2 / 2
            delay_s += self._random.lognormvariate(mu, _JITTER_SIGMA)
        delay_s += self._num_losses() * _RETRANSMISSION_ROUND_TRIPS * conditions.round_trip_s
        self._last_due_s = max(self._last_due_s, now_s + delay_s)
        return self._last_due_s

    def _num_losses(self) -> int:
        """How often in a row the frame is lost."""
        if not self._conditions.loss:
            return 0
        num = 0
        while num < _MOST_LOSSES and self._random.random() < self._conditions.loss:
            num += 1
        return num


def life_s(conditions: LinkConditions) -> float:
    """How long this link lives until it is dropped, by its seed."""
    if not conditions.churn_s:
        return math.inf
    return conditions.churn_s * Random(f"{conditions.seed}/life").uniform(0.5, 1.5)  # noqa: S311


class SlowLink:
    """A link under given conditions. `carry_out` and `carry_in` must run beside its users."""

    def __init__(self, link: Link, conditions: LinkConditions) -> None:
        self._link = link
        self._conditions = conditions
        self._way_out, self._way_in = Transit(conditions, "out"), Transit(conditions, "in")
        self._out, self._out_end = trio.open_memory_channel[tuple[float, bytes]](
            _MAX_DELAYED_FRAMES
        )
        self._in, self._in_end = trio.open_memory_channel[tuple[float, bytes]](_MAX_DELAYED_FRAMES)
        self._failure: Exception | None = None
        self._all_sent = trio.Event()
        self._carriers = (trio.CancelScope(), trio.CancelScope())

    @property
    def peer_id(self) -> PeerId:
        return self._link.peer_id

    async def send(self, frame: bytes) -> None:
        try:
            await self._out.send((self._way_out.due_s(trio.current_time()), frame))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkClosed("the link is closed") from self._failure

    async def receive(self) -> bytes:
        try:
            due, frame = await self._in_end.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._failure or LinkClosed("the link is closed") from None
        # A frame taken here is lost if the wait is cancelled: callers cancel only to end the link.
        await trio.sleep_until(due)
        return frame

    async def aclose(self) -> None:
        self._out.close()
        longest_s = self._conditions.round_trip_s + 6 * self._conditions.jitter_s
        deadline = trio.current_time() + longest_s + 1.0
        with trio.CancelScope(deadline=deadline, shield=True):
            await self._all_sent.wait()
        await self._link.aclose()

    def drop(self) -> None:
        """Both directions end at once, with all that is under way."""
        self._failure = self._failure or LinkClosed("the link was dropped on purpose")
        for scope in self._carriers:
            scope.cancel()
        self._out_end.close()
        self._in_end.close()

    async def carry_out(self) -> None:
        try:
            with self._carriers[0], self._out_end:
                async for due, frame in self._out_end:
                    await trio.sleep_until(due)
                    await self._link.send(frame)
        except LinkClosed as closed:
            self._failure = closed
        finally:
            self._all_sent.set()

    async def carry_in(self) -> None:
        with self._carriers[1], self._in:
            while True:
                try:
                    frame = await self._link.receive()
                except (LinkClosed, ProtocolError) as error:
                    self._failure = error
                    return
                await self._in.send((self._way_in.due_s(trio.current_time()), frame))

    async def drop_later(self) -> None:
        await trio.sleep(life_s(self._conditions))
        self.drop()


@asynccontextmanager
async def slowed(link: Link, conditions: LinkConditions) -> AsyncIterator[Link]:
    """The link under these conditions."""
    if conditions.is_plain:
        yield link
        return
    slow = SlowLink(link, conditions)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.carry_out)
        nursery.start_soon(slow.carry_in)
        nursery.start_soon(slow.drop_later)
        yield slow
        nursery.cancel_scope.cancel()
