"""Accepted tokens on their way into the ledger."""

import pytest

from coordinator import accounting
from coordinator.accounting import Accounting
from coordinator.ledger.memory import MemoryLedger
from coordinator.ledger.ports import Contribution, SignedReceipt
from coordinator.sessions import Committed, Session
from coordinator.store.errors import StoreError
from specedge_p2p.names import PeerId
from tests.support.sessions import make_session
from tests.support.swarm import identity

NODE = PeerId(identity(1).peer_id)


class FailingLedger(MemoryLedger):
    """A database that is away while `is_away`."""

    is_away = True

    async def record(self, contributions: tuple[Contribution, ...]) -> tuple[SignedReceipt, ...]:  # type: ignore[override]
        if self.is_away:
            raise StoreError("away")
        return await super().record(contributions)


def session(number: int) -> Session:
    made = make_session(number)
    made.nodes_by_source[1] = NODE
    return made


def accepted(num: int) -> Committed:
    return Committed(2, list(range(num)), {1: num})


async def test_law5_receipt_nothing_is_lost_or_doubled_while_the_database_is_away() -> None:
    delivered: list[SignedReceipt] = []
    ledger = FailingLedger(identity(9), lambda: 0.0)
    books = Accounting(ledger, delivered.append)
    one = session(1)
    books.add(one, accepted(3))
    await books.flush()
    books.add(one, accepted(4))
    await books.flush()
    assert delivered == []
    ledger.is_away = False
    await books.flush()
    await books.flush()
    assert len(delivered) == 2
    assert (await ledger.summary()).accepted_by_node == {NODE: 7}


async def test_law7_bounded_what_waits_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that ended long ago must not be kept for ever by a database that never returns."""
    monkeypatch.setattr(accounting, "MAX_UNWRITTEN", 10)
    ledger = FailingLedger(identity(9), lambda: 0.0)
    books = Accounting(ledger, lambda _: None)
    for number in range(100):
        books.add(session(number), accepted(1))
        await books.flush()
        assert books.num_waiting <= 10
    ledger.is_away = False
    await books.flush()
    assert (await ledger.summary()).accepted_by_node == {NODE: 10}
