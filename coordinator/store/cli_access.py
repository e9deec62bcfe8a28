"""Plain functions for the command line: open, do one thing, close. All raise StoreError."""

import time
from functools import partial

from coordinator.gateway.ports import Volunteers
from coordinator.ledger import queries
from coordinator.ledger.ports import LedgerSummary
from coordinator.ledger.verify import Finding
from coordinator.ledger.verify import verify as verify_ledger
from coordinator.store import keys
from coordinator.store.database import open_database


def create_key(database_url: str, label: str, volunteers: Volunteers = "any") -> keys.NewKey:
    """Make an API key; the secret in the result cannot be shown again."""
    with open_database(database_url) as database:
        return database.write_now(
            partial(keys.create_key, label=label, volunteers=volunteers, now_s=time.time())
        )


def list_keys(database_url: str) -> tuple[keys.ApiKey, ...]:
    with open_database(database_url) as database:
        return database.read_now(keys.list_keys)


def revoke_key(database_url: str, key_id: str) -> bool:
    """False when no live key has this id."""
    with open_database(database_url) as database:
        return database.write_now(partial(keys.revoke_key, key_id=key_id, now_s=time.time()))


def ledger_summary(database_url: str) -> LedgerSummary:
    with open_database(database_url) as database:
        return database.read_now(queries.summary)


def ledger_findings(database_url: str) -> tuple[Finding, ...]:
    """Recompute the ledger; what is wrong with it, nothing for a sound one."""
    with open_database(database_url) as database:
        return database.read_now(lambda connection: tuple(verify_ledger(connection)))
