"""The ledger on SQLite or PostgreSQL."""

from collections.abc import Callable, Sequence
from functools import partial

import trio

from coordinator.ledger import queries
from coordinator.ledger.entries import validate
from coordinator.ledger.ports import Contribution, Ledger, LedgerSummary, SignedReceipt
from coordinator.ledger.posting import post
from coordinator.store.database import Database
from coordinator.store.writer import Writer
from specedge_p2p.identity.keys import Identity
from specedge_p2p.names import PeerId
from specedge_p2p.views import ContributionPoint, ReceiptView


class SqlLedger(Ledger):
    """Append-only double-entry account; receipts are signed in the transaction that books them."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        identity: Identity,
        clock: Callable[[], float],
    ) -> None:
        """`clock` gives Unix seconds; it only labels rows and receipts."""
        self._database, self._writer = database, writer
        self._identity, self._clock = identity, clock

    async def record(self, contributions: Sequence[Contribution]) -> tuple[SignedReceipt, ...]:
        """See `Ledger.record`.

        Raises:
            ValueError: a contribution that can never be booked.
            StoreUnavailable: the database cannot be written now. Whether the contributions became
                durable is unknown: record them again, it is harmless.
        """
        validate(contributions)
        if not contributions:
            await trio.lowlevel.checkpoint()
            return ()
        return await self._writer.submit(
            partial(post, items=tuple(contributions), identity=self._identity, now_s=self._clock())
        )

    async def receipts_after(
        self, peer_id: PeerId, sequence: int, limit: int = 256
    ) -> tuple[SignedReceipt, ...]:
        return await self._database.read(
            partial(
                queries.receipts_after,
                coordinator=self._identity.peer_id,
                peer_id=peer_id,
                sequence=sequence,
                limit=limit,
            )
        )

    async def summary(self) -> LedgerSummary:
        return await self._database.read(queries.summary)

    async def contributions(self, since_s: float, bucket_s: float) -> tuple[ContributionPoint, ...]:
        """Accepted tokens per node and bucket of time, oldest first."""
        return await self._database.read(
            partial(queries.contribution_points, since_s=since_s, bucket_s=bucket_s)
        )

    async def latest_receipts(self, limit: int) -> tuple[ReceiptView, ...]:
        """The newest receipts first."""
        return await self._database.read(partial(queries.latest_receipts, limit=limit))
