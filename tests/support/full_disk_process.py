"""A process whose files may grow no further for a while, as on a full disk.

Usage: python -m tests.support.full_disk_process DATABASE_PATH; prints a report as JSON.
"""

import json
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from coordinator.ledger.sql_ledger import SqlLedger
from coordinator.store.database import open_database
from coordinator.store.errors import StoreUnavailable
from coordinator.store.writer import Writer, WriterSettings, open_writer
from tests.support.ledgers import COORDINATOR, contribution

HEADROOM_BYTES = 64 * 1024


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[SqlLedger, Writer]]:
    with open_database(str(path)) as database:
        async with open_writer(database, WriterSettings(retry_s=0.01)) as writer:
            yield SqlLedger(database, writer, COORDINATOR, lambda: 1_000.0), writer


async def fill(ledger: SqlLedger) -> tuple[int, str]:
    """Record until the disk is full; how many receipts came, and the error."""
    num_receipts = 0
    for session in range(10_000):
        try:
            num_receipts += len(await ledger.record([contribution(session, 1, 0)]))
        except StoreUnavailable as error:
            return num_receipts, str(error)
    raise RuntimeError("the disk never filled up")


async def main(path: Path) -> None:
    async with opened(path) as (ledger, writer):
        files = [file.stat().st_size for file in path.parent.iterdir()]
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(files) + HEADROOM_BYTES, hard))
        num_before, error = await fill(ledger)
        trouble_seen = not writer.is_healthy
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        with trio.move_on_after(10):
            while not writer.is_healthy:  # noqa: ASYNC110 - there is nothing to wait on
                await trio.sleep(0.01)
        report = {
            "num_before": num_before,
            "error": error,
            "trouble_seen": trouble_seen,
            "healed_by_itself": writer.is_healthy,
            "num_after": len(await ledger.record([contribution(num_before, 1, 0)])),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
