"""One suite for every ledger: in memory, on SQLite, on PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count

import pytest
import trio

from coordinator.ledger.memory import MemoryLedger
from coordinator.ledger.ports import Contribution, SignedReceipt
from coordinator.ledger.sql_ledger import SqlLedger
from coordinator.store.database import open_database
from coordinator.store.writer import open_writer
from specedge_p2p.identity.receipt import FIRST_PREVIOUS, check, receipt_hash
from specedge_p2p.names import PeerId, SessionId
from tests.support.ledgers import COORDINATOR, contribution, node

AnyLedger = MemoryLedger | SqlLedger


def opened(kind: str, request: pytest.FixtureRequest) -> AbstractAsyncContextManager[AnyLedger]:
    times = map(float, count(1_000))

    @asynccontextmanager
    async def open_ledger() -> AsyncIterator[AnyLedger]:
        if kind == "memory":
            yield MemoryLedger(COORDINATOR, lambda: next(times))
            return
        with open_database(request.getfixturevalue(f"{kind}_url")) as database:
            async with open_writer(database) as writer:
                yield SqlLedger(database, writer, COORDINATOR, lambda: next(times))

    return open_ledger()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[AnyLedger]:
    async with opened(request.param, request) as result:
        yield result


def check_chain(receipts: tuple[SignedReceipt, ...], peer_id: PeerId) -> Iterator[Contribution]:
    """Check signatures and chain from its beginning; what the receipts say."""
    previous = FIRST_PREVIOUS
    for number, receipt in enumerate(receipts, 1):
        body = check(
            receipt.envelope,
            node=peer_id,
            coordinator=COORDINATOR.peer_id,
            previous_hash=previous,
            sequence=number,
        )
        assert (receipt.peer_id, receipt.sequence) == (peer_id, number)
        assert body.micro_credits == body.num_credited * 1_000_000
        previous = receipt_hash(receipt.envelope)
        yield Contribution(
            SessionId(body.session_id),
            PeerId(body.node),
            body.segment,
            body.num_accepted,
            body.num_credited,
        )


async def test_empty_ledger(ledger: AnyLedger) -> None:
    summary = await ledger.summary()
    assert (summary.num_transfers, summary.sum_micro_credits) == (0, 0)
    assert summary.accepted_by_node == summary.micro_credits_by_node == {}
    assert await ledger.record([]) == ()
    assert await ledger.receipts_after(node(1), 0) == ()
    assert await ledger.contributions(0, 1) == ()
    assert await ledger.latest_receipts(10) == ()


async def test_law5_receipt_says_what_was_accepted(ledger: AnyLedger) -> None:
    first = await ledger.record([contribution(1, 1, 0, 5, 4), contribution(1, 2, 0, 7)])
    second = await ledger.record([contribution(2, 1, 0, 2, 0), contribution(1, 1, 1, 1)])
    assert [(r.peer_id, r.sequence) for r in first] == [(node(1), 1), (node(2), 1)]
    assert [(r.peer_id, r.sequence) for r in second] == [(node(1), 2), (node(1), 3)]
    of_first_node = await ledger.receipts_after(node(1), 0)
    assert of_first_node == (first[0], *second)
    assert list(check_chain(of_first_node, node(1))) == [
        contribution(1, 1, 0, 5, 4),
        contribution(2, 1, 0, 2, 0),
        contribution(1, 1, 1, 1),
    ]
    summary = await ledger.summary()
    assert summary.accepted_by_node == {node(1): 8, node(2): 7}
    assert summary.micro_credits_by_node == {node(1): 5_000_000, node(2): 7_000_000}
    assert summary.num_transfers == 3  # what earns nothing moves nothing
    assert summary.sum_micro_credits == 0


async def test_replays_are_harmless(ledger: AnyLedger) -> None:
    item, other = contribution(1, 1, 0), contribution(1, 1, 1)
    first = await ledger.record([item, item, other])
    assert len(first) == 2
    before = await ledger.summary()
    # The key decides: what was recorded stays, whatever a replay claims.
    assert await ledger.record([item, contribution(1, 1, 0, 99), other]) == ()
    assert await ledger.summary() == before
    assert await ledger.receipts_after(node(1), 0) == first


async def test_a_replay_among_new_ones(ledger: AnyLedger) -> None:
    await ledger.record([contribution(1, 1, 0)])
    new = await ledger.record([contribution(1, 1, 1), contribution(1, 1, 0), contribution(1, 2, 0)])
    assert [(r.peer_id, r.sequence) for r in new] == [(node(1), 2), (node(2), 1)]
    assert len(list(check_chain(await ledger.receipts_after(node(1), 0), node(1)))) == 2


async def test_many_tasks_book_exactly_once(ledger: AnyLedger) -> None:
    items = [contribution(1, number % 3, number) for number in range(30)]
    received: list[SignedReceipt] = []

    async def record(start: int) -> None:
        for index in range(len(items)):
            received.extend(await ledger.record([items[(start + index) % len(items)]]))

    async with trio.open_nursery() as nursery:
        for start in range(0, 30, 5):
            nursery.start_soon(record, start)
    assert len(received) == 30
    summary = await ledger.summary()
    assert summary.accepted_by_node == {node(number): 30 for number in range(3)}
    assert (summary.num_transfers, summary.sum_micro_credits) == (30, 0)
    for number in range(3):
        receipts = await ledger.receipts_after(node(number), 0)
        assert len(list(check_chain(receipts, node(number)))) == 10


async def test_receipts_after_pages(ledger: AnyLedger) -> None:
    signed = await ledger.record([contribution(1, 1, segment) for segment in range(5)])
    assert await ledger.receipts_after(node(1), 2) == signed[2:]
    assert await ledger.receipts_after(node(1), 1, limit=2) == signed[1:3]
    assert await ledger.receipts_after(node(1), 5) == ()
    assert await ledger.receipts_after(node(2), 0) == ()


async def test_contributions_over_time(ledger: AnyLedger) -> None:
    for segment in range(4):  # at 1000, 1001, 1002, 1003 s
        await ledger.record([contribution(1, 1, segment, 10), contribution(1, 2, segment, 1)])
    points = await ledger.contributions(1_001, 2)
    assert [(p.at_s, p.peer_id, p.num_accepted) for p in points] == sorted(
        [
            (1_000, node(1), 10),
            (1_000, node(2), 1),
            (1_002, node(1), 20),
            (1_002, node(2), 2),
        ]
    )
    with pytest.raises(ValueError, match="at least 1 ms"):
        await ledger.contributions(0, 0)


async def test_latest_receipts(ledger: AnyLedger) -> None:
    signed = await ledger.record([contribution(7, 1, 0, 4, 3)])
    signed += await ledger.record([contribution(8, 2, 0, 5)])
    newest, oldest = await ledger.latest_receipts(10)
    assert (newest.peer_id, newest.session_id, newest.num_accepted) == (node(2), "s8", 5)
    assert (oldest.sequence, oldest.micro_credits, oldest.at_s) == (1, 3_000_000, 1_000.0)
    assert oldest.digest == receipt_hash(signed[0].envelope).hex()[:16]
    assert await ledger.latest_receipts(1) == (newest,)
    assert await ledger.latest_receipts(-1) == ()


@pytest.mark.parametrize(
    "bad",
    [
        contribution(1, 1, -1),
        contribution(1, 1, 0, -1, 0),
        contribution(1, 1, 0, 2, 3),
        contribution(1, 1, 0, 2**63),
        Contribution(SessionId("s"), node(1), 0, 1.5, 1),  # type: ignore[arg-type]
        Contribution(SessionId("s"), node(1), 0, True, True),
        Contribution(SessionId("s"), PeerId("nobody"), 0, 1, 1),
        Contribution(SessionId(""), node(1), 0, 1, 1),
        Contribution(SessionId("s" * 129), node(1), 0, 1, 1),
        Contribution(SessionId("s\0"), node(1), 0, 1, 1),
    ],
)
async def test_what_cannot_be_booked_is_refused_whole(ledger: AnyLedger, bad: Contribution) -> None:
    with pytest.raises(ValueError, match=r"."):
        await ledger.record([contribution(1, 1, 0), bad])
    assert (await ledger.summary()).accepted_by_node == {}
