"""Opening databases, and what is said when that cannot be done."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from coordinator.store.database import Database, open_database
from coordinator.store.errors import StoreError, StoreUnavailable
from coordinator.store.tables import METADATA, accounts


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "empty"),
        ("mysql://localhost/x", "not supported"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("://", "bad database URL"),
        ("postgresql://[::/x", "bad database URL"),
        ("/nowhere/at/all/x.db", "unable to open"),
        ("postgresql:///x?host=/nowhere", "cannot open database postgresql"),
        ("postgresql://me:secret@127.0.0.1:1/x", "127.0.0.1:1"),
        ("postgresql://127.0.0.1:1/x?user=me&password=secret", "127.0.0.1:1"),
    ],
)
def test_bad_urls_get_one_clear_line(url: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as raised:
        open_database(url)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    path.write_bytes(b"Dear reader, " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        open_database(str(path))


def test_a_plain_path_is_sqlite(tmp_path: Path) -> None:
    with open_database(str(tmp_path / "a ledger.db")) as database:
        assert database.is_sqlite
    assert (tmp_path / "a ledger.db").exists()


def test_sqlite_keeps_what_it_has_acknowledged(sqlite_url: str) -> None:
    with open_database(sqlite_url) as database, database.begin() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
        assert found == {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "busy_timeout": 10_000,
        }
        strict = connection.exec_driver_sql(
            "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table'"
        )
        flags = {row.name: row.strict for row in strict}
    assert all(flags[table] == 1 for table in METADATA.tables)


def test_readers_cannot_write_sqlite(sqlite_url: str) -> None:
    with open_database(sqlite_url) as database, pytest.raises(StoreUnavailable, match="readonly"):
        database.read_now(lambda connection: connection.execute(accounts.delete()))


def test_read_only_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    open_database(str(path)).close()
    # Not by file modes, which do not bind root.
    with pytest.raises(StoreError, match=r"read-?only"):
        open_database(f"sqlite:///file:{path}?mode=ro&uri=true")


def test_read_only_postgresql(postgres_url: str) -> None:
    with pytest.raises(StoreError, match="read-only"):
        open_database(f"{postgres_url}&options=-cdefault_transaction_read_only%3Don")


@pytest.mark.parametrize("value", [True, 1.0, "1", 2**63])
def test_numbers_are_exact(database: Database, value: object) -> None:
    row = {"name": "x", "balance": value, "allow_negative": 0}
    with (
        pytest.raises((sa.exc.StatementError, OverflowError), match=r"expected int|64 bits"),
        database.begin() as connection,
    ):
        connection.execute(accounts.insert().values(row))


def test_a_failed_write_leaves_nothing(database: Database) -> None:
    row = {"name": "x", "balance": 0, "allow_negative": 0}

    def insert_and_fail(connection: sa.Connection) -> None:
        connection.execute(accounts.insert().values(row))
        raise LookupError

    with pytest.raises(LookupError):
        database.write_now(insert_and_fail)
    names = database.read_now(lambda c: c.execute(sa.select(accounts.c.name)).scalars().all())
    assert names == ["mint"]


async def test_reads_run_beside_a_write(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(
            accounts.insert().values({"name": "x", "balance": 0, "allow_negative": 0})
        )
        count = await database.read(
            lambda c: c.execute(sa.select(sa.func.count()).select_from(accounts)).scalar_one()
        )
    assert count == 1
