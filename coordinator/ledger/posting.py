"""Booking contributions inside a write transaction.

Two processes may write the same database (one that is being replaced, and its successor). Each
takes the mint account's row first, so they come one after the other: what is read after that,
the ends of the chains included, stays true until the commit.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from coordinator.ledger.credit import MINT, micro_credits, node_account, transfer
from coordinator.ledger.entries import Chain
from coordinator.ledger.ports import Contribution, SignedReceipt
from coordinator.store.tables import accounts, contributions, receipts, transfers
from specedge_p2p.identity.keys import Identity
from specedge_p2p.names import PeerId


def post(
    connection: sa.Connection, items: Sequence[Contribution], identity: Identity, now_s: float
) -> tuple[SignedReceipt, ...]:
    """Book what is new and sign its receipts, in the order of `items`."""
    mint = _lock_mint(connection)
    now_ms = int(now_s * 1000)
    new_ids = _insert_contributions(connection, items, now_ms)
    if not new_ids:
        return ()
    new = tuple(new_ids)
    account_ids = _open_accounts(connection, {item.peer_id for item in new})
    _transfer(connection, new, mint, account_ids, now_ms)
    chains = chain_ends(connection, identity.peer_id, {item.peer_id for item in new})
    signed = []
    rows = []
    for item in new:
        chain = chains[item.peer_id]
        receipt = chain.add(identity, item, now_s)
        signed.append(receipt)
        rows.append(
            {
                "contribution_id": new_ids[item],
                "coordinator": identity.peer_id,
                "peer_id": item.peer_id,
                "sequence": receipt.sequence,
                "micro_credits": micro_credits(item),
                "digest": chain.digest,
                "envelope": receipt.envelope,
            }
        )
    connection.execute(receipts.insert(), rows)
    return tuple(signed)


def chain_ends(
    connection: sa.Connection, coordinator: PeerId, peers: Iterable[PeerId]
) -> Mapping[PeerId, Chain]:
    """The last receipt of each node; an empty chain for a node without one."""
    ends: defaultdict[PeerId, Chain] = defaultdict(Chain)
    last = (
        sa.select(receipts.c.peer_id, sa.func.max(receipts.c.sequence).label("sequence"))
        .where(receipts.c.coordinator == coordinator, receipts.c.peer_id.in_(sorted(peers)))
        .group_by(receipts.c.peer_id)
        .subquery()
    )
    rows = connection.execute(
        sa.select(receipts.c.peer_id, receipts.c.sequence, receipts.c.digest).join(
            last,
            sa.and_(
                receipts.c.coordinator == coordinator,
                receipts.c.peer_id == last.c.peer_id,
                receipts.c.sequence == last.c.sequence,
            ),
        )
    )
    for row in rows:
        ends[row.peer_id] = Chain(row.sequence, bytes(row.digest))
    return ends


def _lock_mint(connection: sa.Connection) -> int:
    # SQLite ignores FOR UPDATE: there BEGIN IMMEDIATE has already shut the others out.
    found: int = connection.execute(
        sa.select(accounts.c.id).where(accounts.c.name == MINT).with_for_update()
    ).scalar_one()
    return found


def _insert_contributions(
    connection: sa.Connection, items: Sequence[Contribution], now_ms: int
) -> dict[Contribution, int]:
    """Insert what is not there yet, and map it, in order, to its ids.

    The first of several with one key counts.
    """
    first: dict[tuple[str, str, int], Contribution] = {}
    for item in items:
        first.setdefault((item.session_id, item.peer_id, item.segment), item)
    rows = [
        {
            "session_id": item.session_id,
            "peer_id": item.peer_id,
            "segment": item.segment,
            "num_accepted": item.num_accepted,
            "num_credited": item.num_credited,
            "recorded_at_ms": now_ms,
        }
        for item in first.values()
    ]
    table = contributions.c
    statement = (
        _insert(connection, contributions)
        .on_conflict_do_nothing(index_elements=["session_id", "peer_id", "segment"])
        .returning(table.id, table.session_id, table.peer_id, table.segment)
    )
    # RETURNING promises no order.
    ids = {
        (row.session_id, row.peer_id, row.segment): row.id
        for row in connection.execute(statement, rows)
    }
    return {item: ids[key] for key, item in first.items() if key in ids}


def _open_accounts(connection: sa.Connection, peers: Iterable[PeerId]) -> dict[PeerId, int]:
    names = {node_account(peer): peer for peer in sorted(peers)}
    connection.execute(
        _insert(connection, accounts).on_conflict_do_nothing(index_elements=["name"]),
        [{"name": name, "balance": 0, "allow_negative": 0} for name in names],
    )
    rows = connection.execute(
        sa.select(accounts.c.id, accounts.c.name).where(accounts.c.name.in_(names))
    )
    return {names[row.name]: row.id for row in rows}


def _transfer(
    connection: sa.Connection,
    items: Sequence[Contribution],
    mint: int,
    account_ids: Mapping[PeerId, int],
    now_ms: int,
) -> None:
    """One transfer per contribution that earns anything, and the balances that follow from it."""
    rows = []
    changes: defaultdict[int, int] = defaultdict(int)
    for item in items:
        payment = transfer(item)
        if payment is None:
            continue
        account_id = account_ids[item.peer_id]
        rows.append(
            {
                "idempotency_key": payment.idempotency_key,
                "debit_account_id": mint,
                "credit_account_id": account_id,
                "micro_credits": payment.amount,
                "recorded_at_ms": now_ms,
            }
        )
        changes[mint] -= payment.amount
        changes[account_id] += payment.amount
    if not rows:
        return
    connection.execute(transfers.insert(), rows)
    connection.execute(
        accounts.update()
        .where(accounts.c.id == sa.bindparam("account_id"))
        .values(balance=accounts.c.balance + sa.bindparam("change")),
        [{"account_id": account, "change": changes[account]} for account in sorted(changes)],
    )


def _insert(connection: sa.Connection, table: sa.Table) -> Any:  # noqa: ANN401 - two dialects
    """An INSERT that knows ON CONFLICT."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)
