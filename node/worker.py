"""A node's work over all its links: shake hands, draft until a link ends, say why it ended."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from node.desk import Desk
from node.drafter import Drafter, LevelDone
from node.link_life import LinkEnd, LinkLife, RunIo, RunLevel, Shared
from node.receipts import ReceiptBook
from specedge_p2p.overlay.ports import Link, LinkClosed
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import PROTOCOL_VERSION, Capacity, Hello

log = logging.getLogger(__name__)

_MANY_SESSIONS = 8
_LEVEL_TIME_CHANGE = 1.25
"""A level time that differs by this factor from the one told last is told anew."""


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
    """Said while the drafter has measured nothing itself."""
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
    num_rows: int = 0
    """Of all levels; those of prompts and of other tokens not guessed are num_prefill_rows."""
    num_prefill_rows: int = 0
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
        self._settings = settings
        self._drafter = drafter
        self._desk = Desk(drafter, settings.max_sessions)
        self._capacity = settings.max_sessions
        self._leaving = trio.Event()
        self._told_level_time_s = 0.0
        self._shared = Shared(
            *(self._desk, receipts, drafter.level, run_level, run_io),
            leaving=self._leaving,
            news=self._news,
        )
        self._link: LinkLife | None = None
        self.num_welcomes = 0

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
            num_levels=self._shared.counters.num_levels,
            num_rows=self._shared.counters.num_rows,
            num_prefill_rows=self._shared.counters.num_prefill_rows,
            num_receipts=self._shared.counters.num_receipts,
            num_bad_receipts=self._shared.counters.num_bad_receipts,
            num_bytes_sent=0 if life is None else life.outbox.num_bytes_sent,
            round_trip_s=None if life is None else life.round_trip_s,
        )

    def leave(self) -> None:
        """Say goodbye on the current link, flush, and end it."""
        self._leaving.set()

    def set_capacity(self, max_sessions: int) -> None:
        """From now on take at most this many sessions; 0 pauses new ones."""
        self._capacity = min(max_sessions, self._settings.max_sessions)
        if self._link is not None:
            self._link.tell_capacity(self._capacity)

    async def serve(self, link: Link) -> LinkEnd:
        """Serve one link until it ends. Raises Refused; every other end is returned.

        The caller opened the link and closes it.
        """
        life = LinkLife(self._shared, link)
        try:
            hello = self.hello()
            welcome = await life.shake_hands(hello)
            self.num_welcomes += 1
            self._link = life
            if self._capacity != hello.max_sessions:  # changed while hands were shaken
                life.tell_capacity(self._capacity)
            return await life.run(welcome)
        except LinkClosed:
            return LinkEnd.CLOSED
        except ProtocolError as error:
            log.error("the coordinator broke the protocol: %s", error)
            return LinkEnd.PROTOCOL
        finally:
            self._link = None
            self._desk.end_link()

    def hello(self) -> Hello:
        settings = self._settings
        level_time_s, level_session_time_s = self._level_times_s()
        self._told_level_time_s = level_time_s
        return Hello(
            min_version=PROTOCOL_VERSION,
            max_version=PROTOCOL_VERSION,
            draft_model=settings.draft_model,
            model_fingerprint=settings.model_fingerprint,
            tokenizer_fingerprint=settings.tokenizer_fingerprint,
            max_sessions=self._capacity,
            level_time_s=level_time_s,
            software=settings.software,
            level_session_time_s=level_session_time_s,
        )

    def _news(self) -> Capacity | None:
        """What the coordinator should know of this machine since it was told last."""
        level_time_s, level_session_time_s = self._level_times_s()
        told_s = self._told_level_time_s
        if told_s / _LEVEL_TIME_CHANGE <= level_time_s <= told_s * _LEVEL_TIME_CHANGE:
            return None
        self._told_level_time_s = level_time_s
        return Capacity(self._capacity, level_time_s, level_session_time_s)

    def _level_times_s(self) -> tuple[float, float]:
        """Of a level with one session, and what each further one adds."""
        alone_s = self._drafter.level_time_s(1)
        if not alone_s:
            return self._settings.level_time_s, 0.0
        many_s = self._drafter.level_time_s(_MANY_SESSIONS)
        return alone_s, max(0.0, many_s - alone_s) / (_MANY_SESSIONS - 1)
