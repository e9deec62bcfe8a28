"""From accepted tokens to receipts: sums per (session, node, segment), written every second.

A receipt leaves for its node only when the ledger says that it is durable.
"""

import logging
from collections import defaultdict
from collections.abc import Callable

import trio

from coordinator.ledger.ports import Contribution, Ledger, SignedReceipt
from coordinator.sessions import Committed, Session
from coordinator.store.errors import StoreError
from specedge_p2p.names import PeerId

log = logging.getLogger(__name__)

MAX_UNWRITTEN = 100_000
"""Contributions kept while the database is away; the oldest stay, newer ones are not credited."""


class Accounting:
    def __init__(self, ledger: Ledger, deliver: Callable[[SignedReceipt], None]) -> None:
        self._ledger = ledger
        self._deliver = deliver
        self._accepted: defaultdict[tuple[Session, PeerId], int] = defaultdict(int)
        self._unwritten: list[Contribution] = []
        self._writing = trio.Lock()

    @property
    def num_waiting(self) -> int:
        """Contributions that are not in the ledger yet."""
        return len(self._unwritten) + len(self._accepted)

    def add(self, session: Session, committed: Committed) -> None:
        """Note what a round accepted. Never waits."""
        for source, num_accepted in committed.accepted_by_source.items():
            key = session, session.nodes_by_source[source]
            if key in self._accepted or self.num_waiting < MAX_UNWRITTEN:
                self._accepted[key] += num_accepted

    async def run(self, segment_s: float) -> None:
        """Write a segment every `segment_s`, for ever."""
        while True:
            await trio.sleep(segment_s)
            await self.flush()

    async def flush(self) -> None:
        """Write everything accepted so far and deliver the receipts.

        A database that fails is not the end: the same contributions are written next time, and the
        idempotency keys keep them from being counted twice.
        """
        async with self._writing:
            self._cut_segments()
            if not self._unwritten:
                return
            contributions = tuple(self._unwritten)
            try:
                receipts = await self._ledger.record(contributions)
            except StoreError as error:
                log.error("%d contributions wait for the ledger: %s", len(contributions), error)
                return
            del self._unwritten[: len(contributions)]
        for receipt in receipts:
            self._deliver(receipt)

    def _cut_segments(self) -> None:
        for (session, peer_id), num_accepted in self._accepted.items():
            session.num_segments[peer_id] += 1
            self._unwritten.append(
                Contribution(
                    session_id=session.session_id,
                    peer_id=peer_id,
                    segment=session.num_segments[peer_id],
                    num_accepted=num_accepted,
                    num_credited=num_accepted,
                )
            )
        self._accepted.clear()
