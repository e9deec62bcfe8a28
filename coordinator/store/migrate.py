"""Bringing a database to the tables of this program, in one transaction, once."""

import alembic.command
import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from coordinator.store.errors import StoreError

ADVISORY_LOCK = 0x5BEC_ED6E
"""PostgreSQL only; SQLite's BEGIN IMMEDIATE already lets one process in at a time."""


def config(connection: sa.Connection | None = None) -> Config:
    result = Config()
    result.set_main_option("script_location", "coordinator.store:migrations")
    result.set_main_option("path_separator", "os")
    result.attributes["connection"] = connection
    return result


def migrate(connection: sa.Connection) -> bool:
    """Upgrade inside the caller's transaction; False when there was nothing to do.

    Raises:
        StoreError: the database has a revision that this program does not know.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
    settings = config(connection)
    scripts = ScriptDirectory.from_config(settings)
    found = set(MigrationContext.configure(connection).get_current_heads())
    known = {script.revision for script in scripts.walk_revisions()}
    if unknown := found - known:
        raise StoreError(
            f"the database is newer than this program (revision {', '.join(sorted(unknown))}): "
            "install the newer version"
        )
    if found == set(scripts.get_heads()):
        return False
    alembic.command.upgrade(settings, "head")
    return True
