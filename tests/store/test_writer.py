"""The writer: groups, poison, back-pressure, cancellation, trouble."""

import threading
from collections.abc import Callable
from functools import partial

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from coordinator.store.database import Database, open_database
from coordinator.store.errors import StoreError, StoreUnavailable
from coordinator.store.tables import accounts
from coordinator.store.writer import Writer, WriterSettings, open_writer


def add(connection: sa.Connection, name: str, balance: int = 0) -> str:
    row = {"name": name, "balance": balance, "allow_negative": 0}
    connection.execute(accounts.insert().values(row))
    return name


async def names(database: Database) -> set[str]:
    found = await database.read(lambda c: c.execute(sa.select(accounts.c.name)).scalars().all())
    return set(found) - {"mint"}


class Gate:
    """An operation that holds the writing thread until it is let go."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self.is_reached = threading.Event()

    def __call__(self, _connection: sa.Connection) -> None:
        self.is_reached.set()
        assert self._go.wait(10)

    async def reached(self) -> None:
        assert await trio.to_thread.run_sync(self.is_reached.wait, 10)

    def open(self) -> None:
        self._go.set()


async def test_returns_what_the_operation_returned(database: Database, writer: Writer) -> None:
    assert await writer.submit(partial(add, name="a")) == "a"
    assert await names(database) == {"a"}
    assert writer.is_healthy


async def test_what_waited_is_committed_together(database: Database, writer: Writer) -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.submit, gate)
        await gate.reached()
        for number in range(50):
            nursery.start_soon(writer.submit, partial(add, name=str(number)))
        await trio.testing.wait_all_tasks_blocked(0.05)
        gate.open()
    assert len(await names(database)) == 50
    assert writer.num_commits == 2


async def test_one_bad_operation_does_not_poison_its_group(
    database: Database, writer: Writer
) -> None:
    errors: list[str] = []

    async def submit(name: str, operation: Callable[[sa.Connection], object]) -> None:
        try:
            await writer.submit(operation)
        except (sa.exc.IntegrityError, LookupError) as error:
            errors.append(f"{name} {type(error).__name__}")

    def fail(connection: sa.Connection) -> None:
        add(connection, "half done")
        raise LookupError

    gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.submit, gate)
        await gate.reached()
        nursery.start_soon(submit, "good", partial(add, name="a"))
        nursery.start_soon(submit, "overdrawn", partial(add, name="b", balance=-1))
        nursery.start_soon(submit, "bug", fail)
        nursery.start_soon(submit, "good too", partial(add, name="c"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        gate.open()
    assert sorted(errors) == ["bug LookupError", "overdrawn IntegrityError"]
    assert await names(database) == {"a", "c"}
    assert writer.is_healthy


async def test_law7_bounded_queue_makes_submitters_wait(database: Database) -> None:
    async with open_writer(database, WriterSettings(max_waiting=3)) as writer:
        gate = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.submit, gate)
            await gate.reached()
            for number in range(2):
                nursery.start_soon(writer.submit, partial(add, name=str(number)))
            await trio.testing.wait_all_tasks_blocked(0.05)
            # No room: this one waits outside the queue, where it may still be cancelled.
            with trio.move_on_after(0.05) as scope:
                await writer.submit(partial(add, name="late"))
            assert scope.cancelled_caught
            gate.open()
        assert await names(database) == {"0", "1"}
        await writer.submit(partial(add, name="late"))


async def test_cancellation_waits_for_the_outcome(database: Database, writer: Writer) -> None:
    gate = Gate()
    done: list[str] = []

    async def submit() -> None:
        done.append(await writer.submit(partial(add, name="a")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.submit, gate)
        await gate.reached()
        nursery.start_soon(submit)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
        gate.open()
    assert done == ["a"]
    assert await names(database) == {"a"}


async def test_closing_writes_what_is_queued(database: Database) -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery, open_writer(database) as writer:
        nursery.start_soon(writer.submit, gate)
        await gate.reached()
        nursery.start_soon(writer.submit, partial(add, name="a"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        threading.Timer(0.05, gate.open).start()  # the writer is closed first
    assert await names(database) == {"a"}
    with pytest.raises(StoreError, match="closed"):
        await writer.submit(partial(add, name="b"))


async def test_a_lost_server_is_an_error_then_forgotten(postgres_url: str) -> None:
    def cut(connection: sa.Connection) -> None:
        connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with open_database(postgres_url) as database:
        async with open_writer(database, WriterSettings(retry_s=0.01)) as writer:
            with pytest.raises(StoreUnavailable, match="terminating connection"):
                await writer.submit(cut)
            assert "terminating connection" in writer.trouble
            with trio.fail_after(10):  # an idle writer looks again by itself
                while not writer.is_healthy:  # noqa: ASYNC110 - there is nothing to wait on
                    await trio.sleep(0.01)
            await writer.submit(partial(add, name="a"))
        assert await names(database) == {"a"}


async def test_a_server_that_became_read_only_is_one_that_is_away(postgres_url: str) -> None:
    """As after a failover: it is no "operational" error, and the program has done nothing wrong."""

    def become(connection: sa.Connection, mode: str) -> None:
        connection.execute(sa.text(f"SET SESSION CHARACTERISTICS AS TRANSACTION READ {mode}"))

    async def refused() -> None:
        with pytest.raises(StoreUnavailable, match="read-only transaction"):
            await writer.submit(partial(add, name="lost"))

    with open_database(postgres_url) as database:
        async with open_writer(database, WriterSettings(retry_s=0.01)) as writer:
            await writer.submit(partial(become, mode="ONLY"))
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(refused)
            assert "read-only transaction" in writer.trouble
            await writer.submit(partial(become, mode="WRITE"))
            with trio.fail_after(10):
                while not writer.is_healthy:  # noqa: ASYNC110 - there is nothing to wait on
                    await trio.sleep(0.01)
            await writer.submit(partial(add, name="a"))
        assert await names(database) == {"a"}
