"""Accepted tokens to receipts, whatever the ledger does."""

from collections import Counter
from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from coordinator import accounting as module
from coordinator.accounting import Accounting
from coordinator.ledger.memory import MemoryLedger
from coordinator.ledger.ports import Contribution, SignedReceipt
from coordinator.sessions import Committed, Session
from coordinator.store.errors import StoreUnavailable
from specedge_p2p.identity.keys import Identity
from specedge_p2p.names import PeerId, SessionId
from specedge_p2p.noise import noise_key
from tests.support.swarm import identity, request

NODES = tuple(identity(number).peer_id for number in (1, 2))


class WeakLedger(MemoryLedger):
    """Fails as it is told, before or after the contributions became durable."""

    def __init__(self) -> None:
        super().__init__(Identity(bytes(32)), lambda: 1.0)
        self.fails = ""
        self.recorded: list[tuple[Contribution, ...]] = []

    async def record(self, contributions: Sequence[Contribution]) -> tuple[SignedReceipt, ...]:
        self.recorded.append(tuple(contributions))
        if self.fails == "before":
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("away")
        receipts = await super().record(contributions)
        if self.fails == "after":
            raise StoreUnavailable("away, perhaps written")
        return receipts


class NoText:
    def push(self, token_id: int) -> tuple[str, bool]:
        return "", False

    def finish(self) -> tuple[str, bool]:
        return "", False


def session(number: int) -> Session:
    asked = request("prompt", 50, 0.0, 0)
    key = noise_key(bytes(16), asked.prompt_ids)
    one = Session(number, SessionId(f"s{number}"), asked, key, 50, NoText(), 0.0)
    one.nodes_by_source.update(enumerate(NODES))
    return one


def accepted(**by_source: int) -> Committed:
    return Committed(0, accepted_by_source={int(name[1:]): n for name, n in by_source.items()})


async def test_law5_receipt_leaves_only_after_the_ledger_has_it(autojump_clock: MockClock) -> None:
    delivered: list[SignedReceipt] = []
    ledger = WeakLedger()
    books, one = Accounting(ledger, delivered.append), session(1)
    books.add(one, accepted(s0=3, s1=2))
    books.add(one, accepted(s0=4))
    for fails in ("before", "after"):
        ledger.fails = fails
        await books.flush()
        assert delivered == []
    ledger.fails = ""
    await books.flush()
    assert (await ledger.summary()).accepted_by_node == {NODES[0]: 7, NODES[1]: 2}
    # What may have been written under a failure was asked for again, the very same.
    assert len(set(ledger.recorded)) == 1


async def test_what_is_accepted_while_the_ledger_is_away_is_summed() -> None:
    ledger = WeakLedger()
    books, one = Accounting(ledger, lambda _: None), session(1)
    ledger.fails = "before"
    for _ in range(100):
        books.add(one, accepted(s0=1))
        await books.flush()
    ledger.fails = ""
    await books.flush()
    assert (await ledger.summary()).accepted_by_node == {NODES[0]: 100}
    assert [len(items) for items in ledger.recorded[-2:]] == [1, 1]
    assert [items[0].segment for items in ledger.recorded[-2:]] == [1, 2]


async def test_law7_bounded_what_waits_for_the_ledger(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_UNWRITTEN", 5)
    ledger = WeakLedger()
    ledger.fails = "before"
    books = Accounting(ledger, lambda _: None)
    sessions = [session(number) for number in range(20)]
    for one in sessions:
        books.add(one, accepted(s0=1))
    await books.flush()
    for one in sessions:
        books.add(one, accepted(s0=1))
        await books.flush()
        assert books.num_waiting <= 5
    assert books.num_lost == 15 + 20
    assert "35 accepted tokens are lost" in caplog.text
    ledger.fails = ""
    await books.flush()
    assert (await ledger.summary()).accepted_by_node == {NODES[0]: 5}


async def test_nothing_accepted_asks_the_ledger_nothing() -> None:
    ledger = WeakLedger()
    await Accounting(ledger, lambda _: None).flush()
    assert ledger.recorded == []


async def test_segments_are_written_every_second(autojump_clock: MockClock) -> None:
    ledger = WeakLedger()
    books, one = Accounting(ledger, lambda _: None), session(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(books.run, 1.0)
        for _ in range(5):
            books.add(one, accepted(s0=2))
            await trio.sleep(1.01)
        nursery.cancel_scope.cancel()
    assert [items[0].segment for items in ledger.recorded] == [1, 2, 3, 4, 5]


events = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(1, 9)),
        st.sampled_from(["", "before", "after", "flush", "two at once"]),
    ),
    max_size=40,
)


@given(events=events)
def test_law5_receipt_nothing_is_lost_or_doubled(
    events: list[tuple[int, int, int] | str],
) -> None:
    async def run() -> None:
        ledger = WeakLedger()
        delivered: list[SignedReceipt] = []
        books = Accounting(ledger, delivered.append)
        sessions = [session(number) for number in range(4)]
        want: Counter[PeerId] = Counter()
        for event in events:
            if isinstance(event, tuple):
                number, source, count = event
                books.add(sessions[number], accepted(**{f"s{source}": count}))
                want[NODES[source]] += count
            elif event in ("flush", "two at once"):
                async with trio.open_nursery() as nursery:
                    for _ in range(1 + (event == "two at once")):
                        nursery.start_soon(books.flush)
            else:
                ledger.fails = event
        ledger.fails = ""
        await books.flush()
        assert (await ledger.summary()).accepted_by_node == dict(want)
        held = [await ledger.receipts_after(node, 0) for node in NODES]
        assert set(delivered) <= {receipt for receipts in held for receipt in receipts}
        assert len(delivered) == len(set(delivered))

    trio.run(run, clock=MockClock(autojump_threshold=0))
