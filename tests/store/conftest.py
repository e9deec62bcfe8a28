"""Fixtures of the database tests."""

from tests.support.databases import (
    database,
    database_url,
    postgres_server,
    postgres_url,
    sqlite_url,
    writer,
)

__all__ = ["database", "database_url", "postgres_server", "postgres_url", "sqlite_url", "writer"]
