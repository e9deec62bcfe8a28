"""From accepted tokens to receipts: sums per (session, node, segment), written every second.

A receipt leaves for its node only when the ledger says that it is durable.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio

from coordinator.ledger.ports import Contribution, Ledger, SignedReceipt
from coordinator.sessions import Committed, Session
from coordinator.store.errors import StoreError
from specedge_p2p.names import PeerId, SessionId

log = logging.getLogger(__name__)

MAX_UNWRITTEN = 100_000
"""Sums per session and node kept while the database is away; newer ones are not credited."""


@dataclass(slots=True)
class _Sum:
    """Accepted tokens that no segment holds yet."""

    num_segments: Counter[PeerId]
    """The session's; its tokens need not be kept for it."""
    num_accepted: int = 0


class Accounting:
    def __init__(self, ledger: Ledger, deliver: Callable[[SignedReceipt], None]) -> None:
        self._ledger = ledger
        self._deliver = deliver
        self._accepted: dict[tuple[SessionId, PeerId], _Sum] = {}
        self._unwritten: tuple[Contribution, ...] = ()
        self._writing = trio.Lock()
        self.num_lost = 0
        """Accepted tokens that could not be noted because the database was away for too long."""

    @property
    def num_waiting(self) -> int:
        """Contributions that are not in the ledger yet."""
        return len(self._unwritten) + len(self._accepted)

    def add(self, session: Session, committed: Committed) -> None:
        """Note what a round accepted. Never waits."""
        for source, num_accepted in committed.accepted_by_source.items():
            key = session.session_id, session.nodes_by_source[source]
            entry = self._accepted.get(key)
            if entry is None:
                if self.num_waiting >= MAX_UNWRITTEN:
                    self.num_lost += num_accepted
                    continue
                entry = self._accepted[key] = _Sum(session.num_segments)
            entry.num_accepted += num_accepted

    async def run(self, segment_s: float) -> None:
        """Write a segment every `segment_s`, for ever."""
        while True:
            await trio.sleep(segment_s)
            await self.flush()

    async def flush(self) -> None:
        """Write everything accepted so far and deliver the receipts.

        A database that fails is not the end: the same contributions are written next time, and the
        idempotency keys keep them from being counted twice. What is accepted meanwhile is summed.
        """
        async with self._writing:
            await self._write()
            if not self._unwritten:
                self._unwritten = self._cut_segments()
                await self._write()

    async def _write(self) -> None:
        if not self._unwritten:
            return
        try:
            receipts = await self._ledger.record(self._unwritten)
        except StoreError as error:
            log.error(
                "%d contributions wait for the ledger, %d accepted tokens are lost: %s",
                self.num_waiting,
                self.num_lost,
                error,
            )
            return
        self._unwritten = ()
        for receipt in receipts:
            self._deliver(receipt)

    def _cut_segments(self) -> tuple[Contribution, ...]:
        contributions = []
        for (session_id, peer_id), entry in self._accepted.items():
            entry.num_segments[peer_id] += 1
            contributions.append(
                Contribution(
                    session_id=session_id,
                    peer_id=peer_id,
                    segment=entry.num_segments[peer_id],
                    num_accepted=entry.num_accepted,
                    num_credited=entry.num_accepted,
                )
            )
        self._accepted.clear()
        return tuple(contributions)
