"""API keys: who may use the gateway. Only a digest is kept; a key is shown once."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

import sqlalchemy as sa

from coordinator.gateway.auth import secret_digest
from coordinator.gateway.ports import Volunteers
from coordinator.store.database import Database
from coordinator.store.errors import StoreError
from coordinator.store.tables import api_keys
from coordinator.store.writer import Writer

PREFIX = "sk-"
MAX_LABEL_LENGTH = 200


@dataclass(frozen=True, slots=True)
class ApiKey:
    key_id: str
    label: str
    volunteers: Volunteers
    """Who may draft for its requests that do not say so themselves."""
    created_at_s: float
    revoked_at_s: float | None


@dataclass(frozen=True, slots=True)
class NewKey:
    key: str
    """The secret itself; it cannot be shown again."""
    record: ApiKey


def create_key(
    connection: sa.Connection, label: str, volunteers: Volunteers, now_s: float
) -> NewKey:
    """Make a key. Raises StoreError for a bad label or tier."""
    if volunteers not in get_args(Volunteers):
        raise StoreError(f"volunteers must be one of {', '.join(get_args(Volunteers))}")
    if len(label) > MAX_LABEL_LENGTH or not label.isprintable():
        raise StoreError(f"a label is at most {MAX_LABEL_LENGTH} printable characters")
    key = PREFIX + secrets.token_urlsafe(32)
    key_id, created_at_ms = secrets.token_hex(6), int(now_s * 1000)
    connection.execute(
        api_keys.insert().values(
            id=key_id,
            digest=secret_digest(key),
            label=label,
            volunteers=volunteers,
            created_at_ms=created_at_ms,
        )
    )
    return NewKey(key, ApiKey(key_id, label, volunteers, created_at_ms / 1000, None))


def list_keys(connection: sa.Connection) -> tuple[ApiKey, ...]:
    """All keys, revoked ones too, oldest first."""
    rows = connection.execute(api_keys.select().order_by(api_keys.c.created_at_ms, api_keys.c.id))
    return tuple(_record(row) for row in rows)


def revoke_key(connection: sa.Connection, key_id: str, now_s: float) -> bool:
    """Take a key's rights away for ever; False when no live key has this id."""
    result = connection.execute(
        api_keys.update()
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at_ms.is_(None))
        .values(revoked_at_ms=int(now_s * 1000))
    )
    return result.rowcount == 1


def find_key(connection: sa.Connection, digest: bytes) -> ApiKey | None:
    """The record of the secret with this SHA-256 digest; None when unknown or revoked."""
    row = connection.execute(
        api_keys.select().where(api_keys.c.digest == digest, api_keys.c.revoked_at_ms.is_(None))
    ).one_or_none()
    return None if row is None else _record(row)


class ApiKeys:
    """The same for tasks of the event loop."""

    def __init__(self, database: Database, writer: Writer, clock: Callable[[], float]) -> None:
        self._database, self._writer, self._clock = database, writer, clock

    async def create(self, label: str, volunteers: Volunteers = "any") -> NewKey:
        now_s = self._clock()
        return await self._writer.submit(
            partial(create_key, label=label, volunteers=volunteers, now_s=now_s)
        )

    async def list(self) -> tuple[ApiKey, ...]:
        return await self._database.read(list_keys)

    async def revoke(self, key_id: str) -> bool:
        now_s = self._clock()
        return await self._writer.submit(partial(revoke_key, key_id=key_id, now_s=now_s))

    async def lookup(self, digest: bytes) -> ApiKey | None:
        """See find_key."""
        return await self._database.read(partial(find_key, digest=digest))


def _record(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    revoked = row.revoked_at_ms
    return ApiKey(
        row.id,
        row.label,
        row.volunteers,
        row.created_at_ms / 1000,
        None if revoked is None else revoked / 1000,
    )
