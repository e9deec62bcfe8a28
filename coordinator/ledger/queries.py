"""Questions to the ledger, each answered from one snapshot."""

import sqlalchemy as sa

from coordinator.ledger.entries import MAX_LATEST
from coordinator.ledger.ports import LedgerSummary, SignedReceipt
from coordinator.store.tables import accounts, contributions, receipts, transfers
from specedge_p2p.names import PeerId
from specedge_p2p.views import ContributionPoint, ReceiptView

MAX_POINTS = 100_000


def summary(connection: sa.Connection) -> LedgerSummary:
    num_transfers = connection.execute(sa.select(sa.func.count()).select_from(transfers))
    total = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(accounts.c.balance), 0)))
    accepted = connection.execute(
        sa.select(contributions.c.peer_id, sa.func.sum(contributions.c.num_accepted))
        .group_by(contributions.c.peer_id)
        .order_by(contributions.c.peer_id)
    )
    balances = connection.execute(
        sa.select(accounts.c.name, accounts.c.balance)
        .where(accounts.c.name.startswith("node:", autoescape=True))
        .order_by(accounts.c.name)
    )
    return LedgerSummary(
        num_transfers=int(num_transfers.scalar_one()),
        sum_micro_credits=int(total.scalar_one()),  # SUM of bigint is Decimal on PostgreSQL
        accepted_by_node={PeerId(peer): int(count) for peer, count in accepted},
        micro_credits_by_node={
            PeerId(name.removeprefix("node:")): balance for name, balance in balances
        },
    )


def receipts_after(
    connection: sa.Connection, coordinator: PeerId, peer_id: PeerId, sequence: int, limit: int
) -> tuple[SignedReceipt, ...]:
    """A node's receipts behind `sequence`, in order."""
    rows = connection.execute(
        sa.select(receipts.c.sequence, receipts.c.envelope)
        .where(
            receipts.c.coordinator == coordinator,
            receipts.c.peer_id == peer_id,
            receipts.c.sequence > sequence,
        )
        .order_by(receipts.c.sequence)
        .limit(limit)
    )
    return tuple(SignedReceipt(peer_id, row.sequence, bytes(row.envelope)) for row in rows)


def contribution_points(
    connection: sa.Connection, since_s: float, bucket_s: float
) -> tuple[ContributionPoint, ...]:
    """Accepted tokens per node and bucket of time, oldest first. ValueError for an empty bucket."""
    bucket_ms = int(bucket_s * 1000)
    if bucket_ms < 1:
        raise ValueError("a bucket lasts at least 1 ms")
    table = contributions.c
    bucket = (table.recorded_at_ms - table.recorded_at_ms % bucket_ms).label("bucket")
    rows = connection.execute(
        sa.select(bucket, table.peer_id, sa.func.sum(table.num_accepted).label("num_accepted"))
        .where(table.recorded_at_ms >= int(since_s * 1000))
        .group_by(bucket, table.peer_id)
        .order_by(sa.desc(bucket), table.peer_id.desc())
        .limit(MAX_POINTS)
    )
    points = [
        ContributionPoint(PeerId(row.peer_id), row.bucket / 1000, int(row.num_accepted))
        for row in rows
    ]
    return tuple(reversed(points))


def latest_receipts(connection: sa.Connection, limit: int) -> tuple[ReceiptView, ...]:
    """The newest receipts first."""
    rows = connection.execute(
        sa.select(
            receipts.c.peer_id,
            receipts.c.sequence,
            contributions.c.session_id,
            contributions.c.num_accepted,
            receipts.c.micro_credits,
            contributions.c.recorded_at_ms,
            receipts.c.digest,
        )
        .join(contributions, contributions.c.id == receipts.c.contribution_id)
        .order_by(receipts.c.id.desc())
        .limit(max(0, min(limit, MAX_LATEST)))
    )
    return tuple(
        ReceiptView(
            peer_id=row.peer_id,
            sequence=row.sequence,
            session_id=row.session_id,
            num_accepted=row.num_accepted,
            micro_credits=row.micro_credits,
            at_s=row.recorded_at_ms / 1000,
            digest=bytes(row.digest).hex()[:16],
        )
        for row in rows
    )
