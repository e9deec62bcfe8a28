"""One link's life: four tasks over one link machine.

`_read` takes frames, answers pings at once and puts the rest into a bounded inbox. `_draft` is the
heart: between two levels it applies what came in and streams what the trees gained; it never waits
for a verdict and sleeps only when nothing can grow. `_send` drains the outbox. `_keep_receipts`
checks and stores receipts, which takes a disk write each.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import trio

from node.desk import Desk
from node.drafter import LevelDone, Shed
from node.link import Outbox, OutboxFull
from node.receipts import BookError, ReceiptBook, ReceiptGap
from specedge_p2p.errors import ClearError
from specedge_p2p.identity.receipt import ReceiptError
from specedge_p2p.overlay.ports import Link, LinkClosed
from specedge_p2p.wire.errors import IllegalSend, ProtocolError
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.messages import (
    Capacity,
    Goodbye,
    Hello,
    Message,
    NodeMessage,
    Ping,
    Pong,
    Proposal,
    Receipt,
    ReceiptRequest,
    Refuse,
    Welcome,
)

log = logging.getLogger(__name__)

RunLevel = Callable[[Callable[[], LevelDone]], Awaitable[LevelDone]]
"""Runs one level off the trio thread, or inline with a given duration in virtual time."""

RunIo = Callable[[Callable[[], object]], Awaitable[object]]
"""Runs a blocking call off the trio thread, or inline."""

HANDSHAKE_S = 15.0
_MAX_INBOX = 512
_MAX_WAITING_RECEIPTS = 256
_PROPOSALS_PER_FRAME = 16
_MISSING_HEARTBEATS = 3
_LEAVE_S = 0.8
_ASK_AGAIN_S = 60.0
"""Before receipts that are still missing are asked for once more."""


class Refused(ClearError):
    """The coordinator does not want this node; the text says why."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class LinkEnd(Enum):
    """Why a link ended."""

    LEFT = "left"
    CLOSED = "the coordinator or the network closed the link"
    SILENT = "nothing was heard from the coordinator"
    PROTOCOL = "the coordinator broke the protocol"
    STALLED = "the link took no more frames"
    BUG = "a message of ours was not legal"
    BROKEN = "the draft model fails again and again"


@dataclass(slots=True)
class Counters:
    """Running totals over all links."""

    num_levels: int = 0
    num_rows: int = 0
    num_prefill_rows: int = 0
    num_receipts: int = 0
    num_bad_receipts: int = 0


@dataclass(frozen=True, slots=True)
class Shared:
    """What outlives a link and is lent to each in turn."""

    desk: Desk
    receipts: ReceiptBook
    level: Callable[[], LevelDone]
    run_level: RunLevel
    io: RunIo
    leaving: trio.Event
    news: Callable[[], Capacity | None]
    """What is to be said of this machine after a level."""
    counters: Counters = field(default_factory=Counters)


class LinkLife:
    """One link. Everything that changes the machine and the desk happens between checkpoints."""

    def __init__(self, shared: Shared, link: Link) -> None:
        self._shared = shared
        self._desk = shared.desk
        self._link = link
        self._machine = LinkMachine("node")
        self.outbox = Outbox()
        self.round_trip_s: float | None = None
        self._heartbeat_s = HANDSHAKE_S
        self._inbox: deque[Message] = deque()
        self._inbox_taken = trio.Event()
        self._wake = trio.Event()
        self._waiting_receipts, self._receipts_in = trio.open_memory_channel[bytes](
            _MAX_WAITING_RECEIPTS
        )
        self._asked_after, self._asked_at_s = -1, 0.0
        self._is_held_back = False  # gains wait in the trees for room in the outbox
        self._end = LinkEnd.CLOSED
        self._scope = trio.CancelScope()
        self._drafting = trio.Lock()
        """Held while a level runs in its thread: what it reads must not change meanwhile."""

    async def shake_hands(self, hello: Hello) -> Welcome:
        """Raises Refused; LinkClosed too when nothing is answered in time."""
        started = trio.current_time()
        await self._link.send(self._machine.send(hello))
        with trio.move_on_after(HANDSHAKE_S):
            answer, *rest = self._machine.receive(await self._link.receive())
            if isinstance(answer, Refuse):
                raise Refused(answer.code, answer.text)
            assert isinstance(answer, Welcome)  # noqa: S101 - the machine lets nothing else through
            self.round_trip_s = trio.current_time() - started
            self._heartbeat_s = answer.heartbeat_s
            self._take(rest)
            return answer
        raise LinkClosed("no answer to Hello")

    async def run(self, welcome: Welcome) -> LinkEnd:
        self._say(*self._desk.begin_link(self._link.peer_id, welcome))
        self._end = LinkEnd.CLOSED
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._draft)
                nursery.start_soon(self._send)
                nursery.start_soon(self._keep_receipts)
                nursery.start_soon(self._leave_when_told)
        return self._end

    def tell_capacity(self, max_sessions: int) -> None:
        self._say(Capacity(max_sessions))

    # --- tasks ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            with trio.move_on_after(_MISSING_HEARTBEATS * self._heartbeat_s) as deadline:
                try:
                    frame = await self._link.receive()
                    messages = self._machine.receive(frame)
                except LinkClosed:
                    return self._finish(LinkEnd.CLOSED)
                except ProtocolError as error:
                    log.error("the coordinator broke the protocol: %s", error)
                    return self._finish(LinkEnd.PROTOCOL)
            if deadline.cancelled_caught:
                return self._finish(LinkEnd.SILENT)
            self._take(messages)
            while len(self._inbox) >= _MAX_INBOX:  # back-pressure until the next level is done
                self._inbox_taken = trio.Event()
                await self._inbox_taken.wait()

    def _take(self, messages: Iterable[Message]) -> None:
        """All at once: the machine has applied them, the desk must not see half of them."""
        for message in messages:
            match message:
                case Ping(nonce=nonce):
                    self._say(Pong(nonce))
                case Receipt(envelope=envelope):
                    try:
                        self._waiting_receipts.send_nowait(envelope)
                    except trio.WouldBlock:
                        log.warning("receipts come faster than the disk takes them")
                case _:
                    self._inbox.append(message)
        if self._inbox:
            self._wake.set()

    async def _level(self) -> LevelDone:
        counters = self._shared.counters
        counters.num_levels += 1
        async with self._drafting:
            done = await self._shared.run_level(self._shared.level)
        counters.num_rows += done.num_rows
        counters.num_prefill_rows += done.num_prefill_rows
        if news := self._shared.news():
            self._say(news)
        return done

    async def _draft(self) -> None:
        while True:
            self._wake = trio.Event()
            self._exchange()
            is_idle = True
            if self._desk.num_sessions:
                done = await self._level()
                is_idle = not done.num_rows and not done.shed
                self._exchange(done.shed)
                if done.is_broken:
                    return self._finish(LinkEnd.BROKEN)
            if is_idle:
                await self._wake.wait()

    async def _send(self) -> None:
        try:
            await self.outbox.drain(self._link, self._frame_sent)
        except LinkClosed:
            self._finish(LinkEnd.CLOSED)
        else:
            self._finish(LinkEnd.LEFT)

    async def _keep_receipts(self) -> None:
        book, coordinator = self._shared.receipts, self._link.peer_id
        try:
            last = await self._shared.io(lambda: book.last_sequence(coordinator))
            assert isinstance(last, int)  # noqa: S101 - narrows a generic call
            self._say(ReceiptRequest(last))
        except BookError as error:
            log.error("no receipts are asked for: %s", error)
        async for envelope in self._receipts_in:
            await self._keep_receipt(envelope)

    async def _keep_receipt(self, envelope: bytes) -> None:
        shared, coordinator = self._shared, self._link.peer_id
        try:
            body = await shared.io(lambda: shared.receipts.add(coordinator, envelope))
        except ReceiptError as error:
            shared.counters.num_bad_receipts += 1
            log.error("A BAD RECEIPT from %s was not kept: %s", coordinator, error)
        except BookError as error:
            log.error("a receipt from %s was not kept: %s", coordinator, error)
        except ReceiptGap as gap:
            now_s = trio.current_time()
            is_new = gap.last_sequence != self._asked_after
            if is_new or now_s >= self._asked_at_s + _ASK_AGAIN_S:
                self._asked_after, self._asked_at_s = gap.last_sequence, now_s
                self._say(ReceiptRequest(gap.last_sequence))
        else:
            shared.counters.num_receipts += body is not None

    async def _leave_when_told(self) -> None:
        await self._shared.leaving.wait()
        async with self._drafting:
            self._exchange()
        self._say(Goodbye("the node leaves"))
        self.outbox.close()
        await trio.sleep(_LEAVE_S)  # a link that does not take the last frames is left without them
        self._finish(LinkEnd.LEFT)

    # --- between checkpoints ----------------------------------------------------------------------

    def _exchange(self, shed: Sequence[Shed] = ()) -> None:
        """Apply what the level shed and what came in, then stream what the trees gained."""
        messages = list(self._inbox)
        self._inbox.clear()
        self._inbox_taken.set()
        replies = [*self._desk.shed(shed), *self._desk.apply(messages)]
        # A session may be closed by a message that came in after the one that made us release it.
        self._say(*(m for m in replies if self._machine.is_open(m.session_no)))
        self._is_held_back = not self.outbox.has_room
        if not self._is_held_back:
            self._propose(self._desk.gains(self._machine))

    def _propose(self, proposals: list[Proposal]) -> None:
        for start in range(0, len(proposals), _PROPOSALS_PER_FRAME):
            self._say(*proposals[start : start + _PROPOSALS_PER_FRAME])

    def _say(self, *messages: NodeMessage) -> None:
        if not messages or self._scope.cancel_called or self.outbox.is_closed:
            return
        try:
            self.outbox.put(self._machine.send(*messages))
        except OutboxFull:
            self._finish(LinkEnd.STALLED)
        except IllegalSend:
            log.exception("a message of ours was not legal; the link starts anew")
            self._finish(LinkEnd.BUG)

    def _frame_sent(self) -> None:
        if self._is_held_back:
            self._wake.set()

    def _finish(self, end: LinkEnd) -> None:
        if not self._scope.cancel_called:
            self._end = end
            self._scope.cancel()
