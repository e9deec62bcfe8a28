"""The one writer: a thread that owns the write connection and commits in groups.

Whatever queued up while the last commit ran goes into the next transaction, so many submitters
share one fsync and a lone one waits for nobody. A failing operation must not take its neighbours
down: the group is rolled back and rerun one by one. An operation can therefore run twice (never
commit twice), so it must do nothing but speak to its connection.
"""

import queue
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

import outcome
import sqlalchemy as sa
import trio

from coordinator.store.database import Database, may_pass, touch
from coordinator.store.errors import StoreError, StoreUnavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WriterSettings:
    max_waiting: int = 1024
    """Operations in the queue or in the running transaction; further submitters wait."""
    max_group: int = 512
    """Operations per transaction."""
    retry_s: float = 1.0
    """How often an idle writer looks whether a database that failed can be written again."""


@dataclass(slots=True, eq=False)
class _Job:
    operation: Callable[[sa.Connection], Any]
    done: trio.Event = field(default_factory=trio.Event)
    result: outcome.Value[Any] | outcome.Error | None = None


@asynccontextmanager
async def open_writer(
    database: Database, settings: WriterSettings | None = None
) -> AsyncIterator["Writer"]:
    """Run a writer; on leaving, what is queued is still written."""
    writer = Writer(database, settings or WriterSettings())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.serve)
        try:
            yield writer
        finally:
            writer.close()


class Writer:
    """Takes operations from trio tasks to the writing thread and their results back."""

    def __init__(self, database: Database, settings: WriterSettings) -> None:
        self._database = database
        self._settings = settings
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._room = trio.Semaphore(settings.max_waiting)
        self._is_closed = False
        self._trouble = ""
        self.num_commits = 0

    @property
    def is_healthy(self) -> bool:
        """Whether the last transaction could be written."""
        return not self._trouble

    @property
    def trouble(self) -> str:
        """Why the database cannot be written now; empty when it can."""
        return self._trouble

    async def submit(self, operation: Callable[[sa.Connection], T]) -> T:
        """Run an operation in a write transaction; returns when its result is durable.

        Waits, cancellably, while the queue is full. Once queued it is no longer cancelled, because
        its outcome must be known.

        Raises:
            StoreUnavailable: the database could not be written.
            StoreError: the writer is closed.
            Exception: whatever the operation itself raised; nothing of it is written then.
        """
        async with self._room:
            if self._is_closed:
                raise StoreError("the writer is closed")
            job = _Job(operation)
            self._queue.put(job)
            with trio.CancelScope(shield=True):
                await job.done.wait()
        assert job.result is not None  # noqa: S101 - set before the event
        result: T = job.result.unwrap()
        return result

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._queue.put(None)

    async def serve(self) -> None:
        """Run until `close`. Cancellation alone does not stop it: results are owed."""
        token = trio.lowlevel.current_trio_token()
        await trio.to_thread.run_sync(self._work, token, limiter=trio.CapacityLimiter(1))

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        while True:
            jobs, is_last = self._next_group()
            if jobs:
                self._write(jobs)
                token.run_sync_soon(_resolve, jobs)
            elif not is_last:
                self._probe()
            if is_last:
                return

    def _next_group(self) -> tuple[list[_Job], bool]:
        """Wait for work; an empty group means that it is time to look after a sick database."""
        jobs: list[_Job] = []
        with suppress(queue.Empty):
            job = self._queue.get(timeout=self._settings.retry_s if self._trouble else None)
            while job is not None:
                jobs.append(job)
                if len(jobs) == self._settings.max_group:
                    return jobs, False
                job = self._queue.get_nowait()
            return jobs, True
        return jobs, False

    def _write(self, jobs: Sequence[_Job]) -> None:
        results = outcome.capture(self._transact, [job.operation for job in jobs])
        if isinstance(results, outcome.Value):
            self._trouble = ""
            for job, value in zip(jobs, results.value, strict=True):
                job.result = outcome.Value(value)
        elif _is_lost(results.error) or (len(jobs) == 1 and _is_database(results.error)):
            text = self._database.trouble("write", results.error)
            is_well = not _is_lost(results.error) and self._may_be_written()
            self._trouble = "" if is_well else text
            for job in jobs:
                # One exception object must not be raised in several tasks.
                job.result = outcome.Error(StoreUnavailable(text))
        elif len(jobs) == 1:
            jobs[0].result = results
        else:
            for job in jobs:
                self._write([job])

    def _transact(self, operations: Sequence[Callable[[sa.Connection], Any]]) -> list[Any]:
        with self._database.begin() as connection:
            values = [operation(connection) for operation in operations]
        self.num_commits += 1
        return values

    def _may_be_written(self) -> bool:
        """Whether it is the operation that the database refuses and not all of them."""
        return isinstance(outcome.capture(self._transact, [touch]), outcome.Value)

    def _probe(self) -> None:
        self._write([_Job(touch)])


def _is_lost(error: BaseException) -> TypeGuard[sa.exc.DBAPIError]:
    """Whether no operation can be written now."""
    return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError) or (
        isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    )


def _is_database(error: BaseException) -> TypeGuard[sa.exc.DBAPIError]:
    """Whether an operation alone was refused by the database and not for its values."""
    return isinstance(error, sa.exc.DBAPIError) and may_pass(error)


def _resolve(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.done.set()
