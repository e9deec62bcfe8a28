"""Opening a database by URL: engines, pragmas, reads in threads.

Both engines are synchronous, since SQLAlchemy's asynchronous ones need asyncio. Writes belong to
`Writer`; reads go through `Database.read` in a thread.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url

from coordinator.ledger.credit import MINT
from coordinator.store.errors import StoreError, StoreUnavailable
from coordinator.store.migrate import migrate
from coordinator.store.tables import accounts

T = TypeVar("T")

MAX_READERS = 4
BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 10
LOST_TIMEOUT_S = 20


def open_database(url: str) -> "Database":
    """Open a database, creating or migrating its tables. Blocks: call it before the event loop.

    Args:
        url: a path of an SQLite file, `sqlite:///path` or `postgresql://user@host/name`.

    Raises:
        StoreError: the URL is not understood, the database cannot be reached or written, or it was
            written by a newer version of this program.
    """
    parsed = parse_url(url)
    database = Database(parsed)
    with ExitStack() as on_error:
        on_error.callback(database.close)
        try:
            with database.begin() as connection:
                migrate(connection)
                touch(connection)
        except sa.exc.DBAPIError as error:
            raise StoreError(f"cannot open database {shown(parsed)}: {reason(error)}") from error
        on_error.pop_all()
    return database


def touch(connection: sa.Connection) -> None:
    """Write without changing anything, to see whether that is possible."""
    connection.execute(
        accounts.update().where(accounts.c.name == MINT).values(balance=accounts.c.balance)
    )


def parse_url(url: str) -> URL:
    """Understand a path or URL. Raises StoreError."""
    if "://" not in url:
        if not url.strip():
            raise StoreError("the database URL is empty")
        return URL.create("sqlite", database=url)
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise StoreError(f"bad database URL: {error}") from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StoreError("an SQLite database must be a file: use sqlite:///path")
        return parsed.set(drivername="sqlite")
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise StoreError(f"database {backend!r} is not supported: use sqlite:///path or postgresql://")


def shown(url: URL) -> str:
    """The URL without its passwords: also those that are parameters of the driver."""
    hidden = {name: "***" for name in url.query if "password" in name}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def reason(error: sa.exc.DBAPIError) -> str:
    """The driver's own words on one line, without the statement and its parameters."""
    return " ".join(str(error.orig).split())


def may_pass(error: sa.exc.DBAPIError) -> bool:
    """Whether what the database says is no fault of the values: it may be well again later.

    A PostgreSQL that became a read-only standby, or whose rights were taken away, says neither
    "operational" nor "interface".
    """
    return not isinstance(error, sa.exc.IntegrityError | sa.exc.DataError)


class Database:
    """Two pools over one database: one connection that writes, a few that read."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._writes = _engine(url, num_connections=1, may_write=True)
        self._reads = _engine(url, num_connections=MAX_READERS, may_write=False)
        self._limiter = trio.CapacityLimiter(MAX_READERS)

    def begin(self) -> AbstractContextManager[sa.Connection]:
        """A write transaction in the calling thread; there is one connection for them."""
        return self._writes.begin()

    def write_now(self, operation: Callable[[sa.Connection], T]) -> T:
        """Run a write transaction outside the event loop. Raises StoreUnavailable."""
        with self._told("write"), self.begin() as connection:
            return operation(connection)

    def read_now(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query in the calling thread. Raises StoreUnavailable."""
        with self._told("read"), self._reads.begin() as connection:
            return query(connection)

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query in a thread, on one consistent snapshot. Raises StoreUnavailable."""
        return await trio.to_thread.run_sync(self.read_now, query, limiter=self._limiter)

    def trouble(self, verb: str, error: sa.exc.DBAPIError) -> str:
        """What cannot be done with this database, and why, on one line."""
        return f"cannot {verb} {shown(self.url)}: {reason(error)}"

    @contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        """Raises StoreUnavailable for what may pass."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            if not may_pass(error):
                raise
            raise StoreUnavailable(self.trouble(verb, error)) from error

    def close(self) -> None:
        self._writes.dispose()
        self._reads.dispose()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _engine(url: URL, *, num_connections: int, may_write: bool) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(
            url,
            poolclass=sa.QueuePool,
            pool_size=num_connections,
            max_overflow=0,
            connect_args={"check_same_thread": False},
        )
        _prepare_sqlite(engine, may_write=may_write)
        return engine
    return sa.create_engine(
        url,
        pool_size=num_connections,
        max_overflow=0,
        pool_pre_ping=True,  # a server that was restarted costs no failed write
        isolation_level="READ COMMITTED" if may_write else "REPEATABLE READ",
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            # A server that is cut off in the middle of a statement would be waited for by the hour.
            "tcp_user_timeout": 1000 * LOST_TIMEOUT_S,
            "keepalives_idle": LOST_TIMEOUT_S // 2,
            "keepalives_interval": LOST_TIMEOUT_S // 4,
            "keepalives_count": 2,
        },
    )


def _prepare_sqlite(engine: sa.Engine, *, may_write: bool) -> None:
    # The driver's own transactions leave DDL and savepoints outside; ours are explicit.
    begin = "BEGIN IMMEDIATE" if may_write else "BEGIN"

    def connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - DBAPI connection
        connection.isolation_level = None
        with closing(connection.cursor()) as cursor:
            cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
            if may_write:
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.execute("PRAGMA synchronous=FULL")
            else:
                cursor.execute("PRAGMA query_only=ON")
            cursor.execute("PRAGMA foreign_keys=ON")

    def start(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", start)
