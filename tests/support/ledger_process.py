"""A process that records until it is killed, and prints each receipt once it has it.

Usage: python -m tests.support.ledger_process DATABASE_URL FIRST_SESSION
"""

import json
import sys
from functools import partial

import trio

from coordinator.ledger.sql_ledger import SqlLedger
from coordinator.store.database import open_database
from coordinator.store.writer import open_writer
from specedge_p2p.identity.receipt import receipt_hash
from tests.support.ledgers import COORDINATOR, contribution


async def record_for_ever(ledger: SqlLedger, number: int, session: int) -> None:
    while True:
        items = [contribution(session, node, number) for node in (number, number + 1)]
        for receipt in await ledger.record(items):
            digest = receipt_hash(receipt.envelope).hex()
            print(json.dumps([receipt.peer_id, receipt.sequence, digest]), flush=True)
        session += 1


async def main(url: str, first_session: int) -> None:
    with open_database(url) as database:
        async with open_writer(database) as writer, trio.open_nursery() as nursery:
            ledger = SqlLedger(database, writer, COORDINATOR, lambda: 1_000.0)
            for number in range(4):
                nursery.start_soon(record_for_ever, ledger, number, first_session)


if __name__ == "__main__":
    trio.run(partial(main, sys.argv[1], int(sys.argv[2])))
