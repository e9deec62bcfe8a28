"""API keys are shown once, found by digest, and revoked for ever."""

from typing import Any

import pytest
import sqlalchemy as sa

from coordinator.gateway.auth import secret_digest
from coordinator.store import cli_access
from coordinator.store.database import Database
from coordinator.store.errors import StoreError
from coordinator.store.keys import ApiKeys
from coordinator.store.tables import METADATA
from coordinator.store.writer import Writer


@pytest.fixture
def keys(database: Database, writer: Writer) -> ApiKeys:
    return ApiKeys(database, writer, lambda: 1_000.5)


async def test_a_key_opens_until_it_is_revoked(keys: ApiKeys) -> None:
    new = await keys.create("laptop", "allowed")
    assert new.key.startswith("sk-")
    assert len(new.key) == 46
    assert (new.record.label, new.record.volunteers) == ("laptop", "allowed")
    assert (new.record.created_at_s, new.record.revoked_at_s) == (1_000.5, None)
    assert await keys.lookup(secret_digest(new.key)) == new.record
    assert await keys.list() == (new.record,)
    assert await keys.revoke(new.record.key_id) is True
    assert await keys.revoke(new.record.key_id) is False
    assert await keys.lookup(secret_digest(new.key)) is None
    (revoked,) = await keys.list()
    assert revoked.revoked_at_s == 1_000.5


@pytest.mark.parametrize("key", ["", "sk-", "sk-" + "x" * 43, "x" * 46, "sk-\udcff", "sk-\0"])
async def test_other_strings_open_nothing(keys: ApiKeys, key: str) -> None:
    await keys.create("laptop")
    assert await keys.lookup(secret_digest(key)) is None


async def test_the_secret_is_not_kept(keys: ApiKeys, database: Database) -> None:
    new = await keys.create("laptop")

    def everything(connection: sa.Connection) -> list[Any]:
        return [
            value
            for table in METADATA.sorted_tables
            for row in connection.execute(table.select())
            for value in row
        ]

    values = await database.read(everything)
    assert "laptop" in values
    assert not [v for v in values if isinstance(v, str | bytes) and new.key[3:11] in repr(v)]


async def test_bad_labels_and_tiers(keys: ApiKeys) -> None:
    for label in ("x" * 201, "two\nlines", "\0"):
        with pytest.raises(StoreError, match="label"):
            await keys.create(label)
    with pytest.raises(StoreError, match="any, allowed, none"):
        await keys.create("x", "some")  # type: ignore[arg-type]
    assert await keys.list() == ()


def test_from_the_command_line(database_url: str) -> None:
    first = cli_access.create_key(database_url, "one")
    second = cli_access.create_key(database_url, "two", "none")
    assert {key.label for key in cli_access.list_keys(database_url)} == {"one", "two"}
    assert cli_access.revoke_key(database_url, first.record.key_id)
    assert not cli_access.revoke_key(database_url, "unknown")
    live = [key for key in cli_access.list_keys(database_url) if key.revoked_at_s is None]
    assert live == [second.record]
    assert cli_access.ledger_summary(database_url).num_transfers == 0
    assert cli_access.ledger_findings(database_url) == ()
