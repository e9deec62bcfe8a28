"""Recomputing the whole ledger from its own rows.

Reads in pieces, so its memory does not grow with the number of rows. It trusts nothing that can be
derived: balances follow from transfers, transfers from contributions, receipts from all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from coordinator.ledger.credit import MINT, node_account
from coordinator.store.tables import accounts, contributions, receipts, transfers
from specedge_p2p.identity.receipt import (
    FIRST_PREVIOUS,
    ReceiptBody,
    ReceiptError,
    check,
    receipt_hash,
)
from specedge_p2p.names import PeerId

ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in the ledger that is not as it must be."""

    subject: str
    """Which row, such as "receipt 12"."""
    text: str


def verify(connection: sa.Connection) -> Iterator[Finding]:
    """Everything that is wrong; nothing for a sound ledger."""
    yield from _balances(connection)
    yield from _unreceipted(connection)
    yield from _receipts(connection)
    yield from _orphans(connection)


def _balances(connection: sa.Connection) -> Iterator[Finding]:
    moved = sa.union_all(
        sa.select(
            transfers.c.credit_account_id.label("account_id"),
            transfers.c.micro_credits.label("change"),
        ),
        sa.select(
            transfers.c.debit_account_id.label("account_id"),
            (-transfers.c.micro_credits).label("change"),
        ),
    ).subquery()
    sums = (
        sa.select(moved.c.account_id, sa.func.sum(moved.c.change).label("balance"))
        .group_by(moved.c.account_id)
        .subquery()
    )
    rows = connection.execute(
        sa.select(
            accounts.c.name,
            accounts.c.balance,
            sa.func.coalesce(sums.c.balance, 0).label("computed"),
        )
        .outerjoin(sums, sums.c.account_id == accounts.c.id)
        .order_by(accounts.c.id)
    )
    total = 0
    for row in rows:
        subject = f"account {row.name}"
        total += row.balance
        if row.balance != int(row.computed):
            yield Finding(subject, f"balance {row.balance}, but transfers give {row.computed}")
        if row.balance < 0 and row.name != MINT:
            yield Finding(subject, f"overdrawn: {row.balance}")
    if total != 0:
        yield Finding("accounts", f"balances sum to {total}, not to 0")


def _unreceipted(connection: sa.Connection) -> Iterator[Finding]:
    rows = connection.execute(
        sa.select(contributions.c.id)
        .outerjoin(receipts, receipts.c.contribution_id == contributions.c.id)
        .where(receipts.c.id.is_(None))
        .order_by(contributions.c.id)
    )
    for row in rows:
        yield Finding(f"contribution {row.id}", "has no receipt")


def _receipts(connection: sa.Connection) -> Iterator[Finding]:
    rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(
        sa.select(
            receipts,
            contributions.c.session_id,
            contributions.c.segment,
            contributions.c.num_accepted,
            contributions.c.num_credited,
            contributions.c.peer_id.label("contributor"),
        )
        .join(contributions, contributions.c.id == receipts.c.contribution_id)
        .order_by(receipts.c.coordinator, receipts.c.peer_id, receipts.c.sequence)
    )
    chain: tuple[str, str] | None = None
    sequence, digest = 0, FIRST_PREVIOUS
    for row in rows:
        if chain != (row.coordinator, row.peer_id):
            chain, sequence, digest = (row.coordinator, row.peer_id), 0, FIRST_PREVIOUS
        subject = f"receipt {row.sequence} of node {row.peer_id}"
        envelope = bytes(row.envelope)
        try:
            body = check(
                envelope,
                node=PeerId(row.peer_id),
                coordinator=PeerId(row.coordinator),
                previous_hash=digest,
                sequence=sequence + 1,
            )
        except ReceiptError as error:
            yield Finding(subject, str(error))
        else:
            yield from (Finding(subject, text) for text in _differences(row, body))
        sequence, digest = row.sequence, receipt_hash(envelope)
        if bytes(row.digest) != digest:
            yield Finding(subject, "the stored hash is not the receipt's")


def _differences(row: sa.Row[tuple[object, ...]], body: ReceiptBody) -> Iterator[str]:
    expected = {
        "node": row.contributor,
        "sequence": row.sequence,
        "session_id": row.session_id,
        "segment": row.segment,
        "num_accepted": row.num_accepted,
        "num_credited": row.num_credited,
        "micro_credits": row.micro_credits,
    }
    for name, value in expected.items():
        said = getattr(body, name)
        if said != value:
            yield f"says {name} {said}, the ledger says {value}"


def _orphans(connection: sa.Connection) -> Iterator[Finding]:
    """Compare transfers with what the receipts promised, in both directions."""
    num_paid = 0
    rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(
        sa.select(contributions, receipts.c.micro_credits, transfers.c.micro_credits.label("paid"))
        .add_columns(accounts.c.name)
        .join(receipts, receipts.c.contribution_id == contributions.c.id)
        .outerjoin(transfers, transfers.c.idempotency_key == _key_in_sql())
        .outerjoin(accounts, accounts.c.id == transfers.c.credit_account_id)
        .order_by(contributions.c.id)
    )
    for row in rows:
        num_paid += row.paid is not None
        if (row.paid or 0) != row.micro_credits:
            yield Finding(
                f"contribution {row.id}", f"earned {row.micro_credits}, but got {row.paid or 0}"
            )
        elif row.paid is not None and row.name != node_account(row.peer_id):
            yield Finding(f"contribution {row.id}", f"was paid to account {row.name}")
    num_transfers = connection.execute(
        sa.select(sa.func.count())
        .select_from(transfers)
        .where(transfers.c.idempotency_key.startswith("draft/", autoescape=True))
    ).scalar_one()
    if num_transfers != num_paid:
        yield Finding("transfers", f"{num_transfers - num_paid} belong to no contribution")


def _key_in_sql() -> sa.ColumnElement[str]:
    """`credit.idempotency_key` as an SQL expression."""
    table = contributions.c
    result: sa.ColumnElement[str] = (
        sa.literal("draft/")
        + table.session_id
        + "/"
        + table.peer_id
        + "/"
        + sa.cast(table.segment, sa.Text)
    )
    return result
