"""`verify` finds every kind of damage, and nothing in a sound ledger."""

import pytest
import sqlalchemy as sa

from coordinator.ledger.sql_ledger import SqlLedger
from coordinator.ledger.verify import Finding, verify
from coordinator.store.database import Database
from coordinator.store.writer import Writer
from specedge_p2p.identity.keys import Identity
from tests.support.ledgers import COORDINATOR, contribution, node


@pytest.fixture
async def filled(database: Database, writer: Writer) -> Database:
    """Two nodes, three receipts each, one of them without credit; two coordinators' keys."""
    for identity, session in ((COORDINATOR, 1), (Identity(b"\3" * 32), 2)):
        ledger = SqlLedger(database, writer, identity, lambda: 1_000.0)
        for number in (1, 2):
            await ledger.record([contribution(session, number, segment) for segment in range(2)])
            await ledger.record([contribution(session, number, 2, 5, 0)])
    return database


def damage(database: Database, *statements: str) -> tuple[Finding, ...]:
    """Do what the triggers forbid, as a host with a tool in his hand could, and verify."""
    with database.begin() as connection:
        if database.is_sqlite:
            connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
            for table in ("contributions", "transfers", "receipts"):
                for change in ("update", "delete"):
                    connection.exec_driver_sql(f"DROP TRIGGER {table}_refuse_{change}")
        else:
            connection.exec_driver_sql("SET session_replication_role = replica")
        for statement in statements:
            connection.execute(sa.text(statement))
        if not database.is_sqlite:
            connection.exec_driver_sql("SET session_replication_role = origin")
    return database.read_now(lambda connection: tuple(verify(connection)))


async def test_a_sound_ledger(filled: Database) -> None:
    assert await filled.read(lambda connection: tuple(verify(connection))) == ()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE accounts SET balance = balance + 1 WHERE name = 'mint'", "transfers give"),
        ("UPDATE accounts SET balance = balance + 1 WHERE name = 'mint'", "sum to 1"),
        ("UPDATE transfers SET micro_credits = 1 WHERE id = 1", "earned 3000000, but got 1"),
        ("DELETE FROM transfers WHERE id = 1", "earned 3000000, but got 0"),
        (
            "UPDATE transfers SET idempotency_key = 'draft/x/y/0' WHERE id = 1",
            "belong to no contribution",
        ),
        (
            "INSERT INTO transfers (idempotency_key, debit_account_id, credit_account_id,"
            " micro_credits, recorded_at_ms) VALUES ('draft/x/y/0', 1, 2, 1, 0)",
            "1 belong to no contribution",
        ),
        (
            "UPDATE transfers SET credit_account_id = (SELECT max(id) FROM accounts) WHERE id = 1",
            "was paid to account",
        ),
        ("DELETE FROM receipts WHERE sequence = 1", "has no receipt"),
        ("DELETE FROM receipts WHERE sequence = 2", "has number 3, not 2"),
        (
            "UPDATE receipts SET sequence = 4 WHERE sequence = 3",
            "says sequence 3, the ledger says 4",
        ),
        ("UPDATE receipts SET micro_credits = 7 WHERE id = 1", "says micro_credits 3000000"),
        ("UPDATE contributions SET num_accepted = 99 WHERE id = 1", "says num_accepted 3"),
        ("UPDATE contributions SET session_id = 'sx' WHERE id = 1", "says session_id s1"),
        ("UPDATE receipts SET digest = envelope WHERE id = 1", "stored hash"),
        ("UPDATE receipts SET envelope = digest WHERE id = 1", "envelope"),
        (
            "UPDATE receipts SET envelope = (SELECT envelope FROM receipts AS other"
            " WHERE other.id = 2) WHERE id = 1",
            "has number 2, not 1",
        ),
    ],
)
async def test_damage_is_found(filled: Database, statement: str, words: str) -> None:
    findings = damage(filled, statement)
    assert any(words in finding.text for finding in findings), findings


async def test_a_replaced_receipt_breaks_the_chain(filled: Database) -> None:
    """A coordinator that signs a smaller receipt anew is caught by the receipt after it."""
    other = Identity(b"\3" * 32).peer_id
    findings = damage(
        filled,
        "UPDATE receipts SET envelope = (SELECT envelope FROM receipts AS theirs WHERE"
        f" theirs.coordinator = '{other}' AND theirs.peer_id = '{node(1)}' AND theirs.sequence = 1)"
        f" WHERE coordinator <> '{other}' AND peer_id = '{node(1)}' AND sequence = 1",
    )
    assert any("not by" in finding.text for finding in findings)
    assert any("does not follow" in finding.text for finding in findings)
