"""One link's life with a coordinator: shake hands, draft until the link ends, say why it ended.

Four tasks share a link. `_read` takes frames, answers pings at once and puts the rest into a
bounded inbox. `_draft` is the heart: between two levels it applies what came in and streams what
the trees gained; it never waits for a verdict and sleeps only when nothing can grow. `_send` drains
the outbox. `_keep_receipts` checks and stores receipts, which takes a disk write each.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import trio

from node.desk import Desk
from node.drafter import Drafter, LevelDone, Shed
from node.link import Outbox, OutboxFull
from node.receipts import ReceiptBook, ReceiptGap
from specedge_p2p.identity.receipt import ReceiptError
from specedge_p2p.overlay.ports import Link, LinkClosed
from specedge_p2p.wire.errors import IllegalSend, ProtocolError
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.messages import (
    PROTOCOL_VERSION,
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


class Refused(Exception):
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


async def run_io_inline(call: Callable[[], object]) -> object:
    """Blocking calls on the trio thread: for virtual time and for books in memory."""
    return call()


async def run_io_in_thread(call: Callable[[], object]) -> object:
    return await trio.to_thread.run_sync(call)


async def run_level_in_thread(level: Callable[[], LevelDone]) -> LevelDone:
    return await trio.to_thread.run_sync(level)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the node says of itself in Hello."""

    draft_model: str
    model_fingerprint: bytes
    tokenizer_fingerprint: bytes
    max_sessions: int
    level_time_s: float
    software: str = ""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What the status line shows."""

    num_sessions: int = 0
    num_accepted: int = 0
    num_committed: int = 0
    num_sent: int = 0
    num_verdicts: int = 0
    num_resumed: int = 0
    num_levels: int = 0
    num_receipts: int = 0
    num_bad_receipts: int = 0
    num_bytes_sent: int = 0
    round_trip_s: float | None = None


class Worker:
    """A node's work; outlives its links, which it serves one after the other."""

    def __init__(
        self,
        drafter: Drafter,
        settings: WorkerSettings,
        receipts: ReceiptBook,
        run_level: RunLevel = run_level_in_thread,
        run_io: RunIo = run_io_in_thread,
    ) -> None:
        self._drafter = drafter
        self._settings = settings
        self._receipts = receipts
        self._run_level = run_level
        self._run_io = run_io
        self._desk = Desk(drafter, settings.max_sessions)
        self._capacity = settings.max_sessions
        self._stats = WorkerStats()
        self._leaving = trio.Event()
        self._link: _LinkLife | None = None
        self.num_welcomes = 0
        self.num_levels = 0
        self.num_receipts = 0
        self.num_bad_receipts = 0

    @property
    def desk(self) -> Desk:
        return self._desk

    @property
    def stats(self) -> WorkerStats:
        tally = self._desk.tally
        life = self._link
        return WorkerStats(
            num_sessions=self._desk.num_sessions,
            num_accepted=tally.num_accepted,
            num_committed=tally.num_committed,
            num_sent=tally.num_sent,
            num_verdicts=tally.num_verdicts,
            num_resumed=tally.num_resumed,
            num_levels=self.num_levels,
            num_receipts=self.num_receipts,
            num_bad_receipts=self.num_bad_receipts,
            num_bytes_sent=0 if life is None else life.outbox.num_bytes_sent,
            round_trip_s=None if life is None else life.round_trip_s,
        )

    def leave(self) -> None:
        """Say goodbye on the current link, flush, and end it."""
        self._leaving.set()

    @property
    def is_leaving(self) -> bool:
        return self._leaving.is_set()

    def set_capacity(self, max_sessions: int) -> None:
        """From now on take at most this many sessions; 0 pauses new ones."""
        self._capacity = min(max_sessions, self._settings.max_sessions)
        if self._link is not None:
            self._link.tell_capacity(self._capacity)

    async def serve(self, link: Link) -> LinkEnd:
        """Serve one link until it ends. Raises Refused; every other end is returned.

        The caller opened the link and closes it.
        """
        life = _LinkLife(self, link)
        try:
            welcome = await life.shake_hands()
            self.num_welcomes += 1
            self._link = life
            return await life.run(welcome)
        except LinkClosed:
            return LinkEnd.CLOSED
        except ProtocolError as error:
            log.error("the coordinator broke the protocol: %s", error)
            return LinkEnd.PROTOCOL
        finally:
            self._link = None
            self._desk.end_link()

    # What a link's life needs of its worker.

    def hello(self) -> Hello:
        settings = self._settings
        return Hello(
            min_version=PROTOCOL_VERSION,
            max_version=PROTOCOL_VERSION,
            draft_model=settings.draft_model,
            model_fingerprint=settings.model_fingerprint,
            tokenizer_fingerprint=settings.tokenizer_fingerprint,
            max_sessions=self._capacity,
            level_time_s=settings.level_time_s,
            software=settings.software,
        )

    async def level(self) -> LevelDone:
        self.num_levels += 1
        return await self._run_level(self._drafter.level)

    async def io(self, call: Callable[[], object]) -> object:
        return await self._run_io(call)

    @property
    def receipts(self) -> ReceiptBook:
        return self._receipts

    @property
    def leaving(self) -> trio.Event:
        return self._leaving


class _LinkLife:
    """One link. Everything that changes the machine and the desk happens between checkpoints."""

    def __init__(self, worker: Worker, link: Link) -> None:
        self._worker = worker
        self._desk = worker.desk
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
        self._asked_after = -1
        self._is_held_back = False  # gains wait in the trees for room in the outbox
        self._end = LinkEnd.CLOSED
        self._scope = trio.CancelScope()

    async def shake_hands(self) -> Welcome:
        started = trio.current_time()
        await self._link.send(self._machine.send(self._worker.hello()))
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

    async def _draft(self) -> None:
        while True:
            self._wake = trio.Event()
            self._exchange()
            num_rows = 0
            if self._desk.num_sessions:
                done = await self._worker.level()
                num_rows = done.num_rows
                self._exchange(done.shed)
            if not num_rows:
                await self._wake.wait()

    async def _send(self) -> None:
        try:
            await self.outbox.drain(self._link, self._frame_sent)
        except LinkClosed:
            self._finish(LinkEnd.CLOSED)
        else:
            self._finish(LinkEnd.LEFT)

    async def _keep_receipts(self) -> None:
        book, coordinator = self._worker.receipts, self._link.peer_id
        last = await self._worker.io(lambda: book.last_sequence(coordinator))
        assert isinstance(last, int)  # noqa: S101 - narrows a generic call
        self._say(ReceiptRequest(last))
        async for envelope in self._receipts_in:
            await self._keep_receipt(envelope)

    async def _keep_receipt(self, envelope: bytes) -> None:
        worker, coordinator = self._worker, self._link.peer_id
        try:
            body = await worker.io(lambda: worker.receipts.add(coordinator, envelope))
        except ReceiptError as error:
            worker.num_bad_receipts += 1
            log.error("A BAD RECEIPT from %s was not kept: %s", coordinator, error)
        except ReceiptGap as gap:
            if gap.last_sequence != self._asked_after:  # once per gap
                self._asked_after = gap.last_sequence
                self._say(ReceiptRequest(gap.last_sequence))
        else:
            worker.num_receipts += body is not None

    async def _leave_when_told(self) -> None:
        await self._worker.leaving.wait()
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
