"""Migrations: from nothing, twice, at once, and from the future."""

import subprocess
import sys
from pathlib import Path

import alembic.command
import pytest
import sqlalchemy as sa

from coordinator.store import migrate
from coordinator.store.database import Database, open_database
from coordinator.store.errors import StoreError
from coordinator.store.tables import METADATA

OPEN = """
import sys
from coordinator.store.database import open_database
sys.stdin.readline()
open_database(sys.argv[1]).close()
"""


def test_from_nothing_and_twice(database_url: str) -> None:
    with open_database(database_url) as database:
        names = database.read_now(lambda connection: sa.inspect(connection).get_table_names())
        assert set(names) == {*METADATA.tables, "alembic_version"}
        with database.begin() as connection:
            assert migrate.migrate(connection) is False
    open_database(database_url).close()


def test_tables_match_their_description(database: Database) -> None:
    with database.begin() as connection:
        alembic.command.check(migrate.config(connection))


def test_constraints_match_their_description(database: Database) -> None:
    """Alembic's check does not look at CHECK constraints."""
    with database.begin() as connection:
        inspector = sa.inspect(connection)
        for name, table in METADATA.tables.items():
            described = {
                str(c.name) for c in table.constraints if isinstance(c, sa.CheckConstraint)
            }
            assert {found["name"] for found in inspector.get_check_constraints(name)} == described


def test_three_processes_at_once(database_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, database_url],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors.decode()) == (0, "")
    with open_database(database_url) as database, database.begin() as connection:
        alembic.command.check(migrate.config(connection))


def test_a_newer_database_is_left_alone(database_url: str) -> None:
    with open_database(database_url) as database, database.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"newer than this program \(revision 9999\)"):
        open_database(database_url)


def test_a_failed_migration_leaves_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upgrade(*args: object) -> None:
        original(*args)  # type: ignore[arg-type]
        raise LookupError

    original = alembic.command.upgrade
    monkeypatch.setattr(alembic.command, "upgrade", upgrade)
    with pytest.raises(LookupError):
        open_database(database_url)
    engine = sa.create_engine(database_url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()
