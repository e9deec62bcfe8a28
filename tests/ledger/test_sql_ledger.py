"""What only a real database can show: append-only, crashes, restarts, rivals, a full disk."""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.ledger.memory import MemoryLedger
from coordinator.ledger.ports import Contribution
from coordinator.ledger.queries import receipts_after, summary
from coordinator.ledger.sql_ledger import SqlLedger
from coordinator.ledger.verify import verify
from coordinator.store.database import Database, open_database
from coordinator.store.tables import accounts, receipts, transfers
from coordinator.store.writer import Writer, open_writer
from specedge_p2p.identity.receipt import receipt_hash
from tests.support.ledgers import COORDINATOR, contribution, node

ROOT = Path(__file__).parents[2]


def ledger_on(database: Database, writer: Writer) -> SqlLedger:
    return SqlLedger(database, writer, COORDINATOR, lambda: 1_000.0)


def assert_sound(database: Database) -> None:
    assert database.read_now(lambda connection: tuple(verify(connection))) == ()
    assert database.read_now(summary).sum_micro_credits == 0


@pytest.mark.parametrize("table", ["contributions", "transfers", "receipts"])
@pytest.mark.parametrize("change", ["UPDATE {} SET id = id", "DELETE FROM {}", "TRUNCATE {}"])
async def test_law5_receipt_tables_are_append_only(
    database: Database, writer: Writer, table: str, change: str
) -> None:
    if database.is_sqlite and change.startswith("TRUNCATE"):
        pytest.skip("SQLite has no TRUNCATE")
    await ledger_on(database, writer).record([contribution(1, 1, 0)])
    statement = change.format(table) + (" CASCADE" if change.startswith("TRUNCATE") else "")
    with pytest.raises(sa.exc.IntegrityError, match="append-only"):
        await writer.submit(lambda connection: connection.execute(sa.text(statement)))
    assert_sound(database)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"micro_credits": 0}, "amount_positive"),
        ({"micro_credits": -5}, "amount_positive"),
        ({"credit_account_id": 1}, "two_accounts"),
        ({"credit_account_id": 99}, r"(?i)foreign.?key"),
        ({"idempotency_key": "taken"}, "idempotency_key"),
    ],
)
async def test_bad_transfers_are_refused(
    database: Database, writer: Writer, row: dict[str, object], words: str
) -> None:
    def book(connection: sa.Connection, key: str, changes: dict[str, object]) -> None:
        sound = {
            "idempotency_key": key,
            "debit_account_id": 1,
            "credit_account_id": 2,
            "micro_credits": 1,
            "recorded_at_ms": 0,
        }
        connection.execute(transfers.insert().values(sound | changes))

    await ledger_on(database, writer).record([contribution(1, 1, 0)])
    await writer.submit(lambda connection: book(connection, "taken", {}))
    with pytest.raises(sa.exc.IntegrityError, match=words):
        await writer.submit(lambda connection: book(connection, "fresh", row))


async def test_only_the_mint_may_be_negative(database: Database, writer: Writer) -> None:
    await ledger_on(database, writer).record([contribution(1, 1, 0)])
    overdraw = accounts.update().where(accounts.c.name != "mint").values(balance=-1)
    with pytest.raises(sa.exc.IntegrityError, match="not_overdrawn"):
        await writer.submit(lambda connection: connection.execute(overdraw))


async def test_law5_receipt_chain_goes_on_after_a_restart(database_url: str) -> None:
    for session in range(3):
        with open_database(database_url) as database:
            async with open_writer(database) as writer:
                (receipt,) = await ledger_on(database, writer).record([contribution(session, 1, 0)])
                assert receipt.sequence == session + 1
            assert_sound(database)


async def test_rival_writers_book_exactly_once(database_url: str) -> None:
    """Two writers of one coordinator, as when an old process has not died yet."""
    items = [contribution(1, number % 3, number) for number in range(40)]
    signed: list[bytes] = []

    async def write(batches: Sequence[Sequence[Contribution]]) -> None:
        with open_database(database_url) as database:
            async with open_writer(database) as writer, trio.open_nursery() as nursery:
                ledger = ledger_on(database, writer)

                async def record(batch: Sequence[Contribution]) -> None:
                    signed.extend(receipt.envelope for receipt in await ledger.record(batch))

                for batch in batches:
                    nursery.start_soon(record, batch)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, [items[n : n + 4] for n in range(0, 40, 2)])
        nursery.start_soon(write, [items[n : n + 3] for n in range(39, -1, -1)])
    assert len(set(signed)) == len(signed) == 40
    with open_database(database_url) as database:
        assert_sound(database)
        assert sum(database.read_now(summary).accepted_by_node.values()) == 120


def kill_in_the_middle(database_url: str, first_session: int, num_receipts: int) -> list[str]:
    """Run a writing process, kill -9 it while it writes; the receipts that it had given out."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ledger_process", database_url, str(first_session)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(num_receipts)]
    finally:
        process.kill()
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait(10)
    # Only whole lines were given out.
    return [line for line in lines if line.endswith("\n")]


def test_law5_receipt_survives_kill_9(database_url: str) -> None:
    acknowledged = []
    for round_no, num_receipts in enumerate((1, 40, 300)):
        acknowledged += kill_in_the_middle(database_url, round_no * 1_000_000, num_receipts)
    assert len(acknowledged) >= 341
    with open_database(database_url) as database:
        assert_sound(database)
        for line in acknowledged:
            peer, sequence, digest = json.loads(line)
            find = partial(
                receipts_after,
                coordinator=COORDINATOR.peer_id,
                peer_id=peer,
                sequence=sequence - 1,
                limit=1,
            )
            (kept,) = database.read_now(find)
            assert (kept.sequence, receipt_hash(kept.envelope).hex()) == (sequence, digest)


def test_law5_receipt_needs_a_disk(tmp_path: Path) -> None:
    """A disk that fills up is an error to whoever records; nothing that was said is lost."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.full_disk_process", str(tmp_path / "test.db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["error"]
    assert "disk" in report["error"]
    assert report["trouble_seen"] is True
    assert report["healed_by_itself"] is True
    assert report["num_before"] > 0
    with open_database(str(tmp_path / "test.db")) as database:
        assert_sound(database)
        count = database.read_now(
            lambda connection: connection.execute(
                sa.select(sa.func.count()).select_from(receipts)
            ).scalar_one()
        )
    assert count == report["num_before"] + report["num_after"]


items = st.builds(
    contribution,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 3),
    st.just(5),
    st.integers(0, 5),
)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@given(batches=st.lists(st.lists(items, max_size=8), max_size=6))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_equals_the_memory_ledger(
    kind: str, request: pytest.FixtureRequest, batches: list[list[Contribution]]
) -> None:
    """Whatever is recorded, and however often: the same receipts, the same sums."""
    url = EmptyDatabases.of(request, kind)
    memory = MemoryLedger(COORDINATOR, lambda: 1_000.0)
    with open_database(url) as database:
        async with open_writer(database) as writer:
            ledger = ledger_on(database, writer)
            for batch in [*batches, *batches[:2]]:
                assert await ledger.record(batch) == await memory.record(batch)
            assert await ledger.summary() == await memory.summary()
            for number in range(1, 4):
                kept = await ledger.receipts_after(node(number), 0)
                assert kept == await memory.receipts_after(node(number), 0)
            assert await ledger.latest_receipts(100) == await memory.latest_receipts(100)
            assert await ledger.contributions(0, 60) == await memory.contributions(0, 60)
        assert_sound(database)


class EmptyDatabases:
    """A new database per example; a fixture gives only one per test."""

    @staticmethod
    def of(request: pytest.FixtureRequest, kind: str) -> str:
        if kind == "postgres":
            url: str = request.getfixturevalue("postgres_server").create_database()
            return url
        folder: Path = request.getfixturevalue("tmp_path")
        return str(folder / f"{len(list(folder.iterdir()))}.db")
