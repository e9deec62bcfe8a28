"""The coordinator as a whole: how it starts, how it ends, and a database that is away."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from coordinator.engine.ports import EngineError
from coordinator.gateway.ports import Refused
from coordinator.ledger.ports import Contribution, SignedReceipt
from coordinator.store.errors import StoreUnavailable
from specedge_p2p.errors import outside_groups
from specedge_p2p.lm.toy import ToyModel
from specedge_p2p.wire.messages import Ping
from tests.support.scripted_node import scripted_node
from tests.support.swarm import ENDLESS, Swarm, SwarmSettings, request, running_swarm


def draft() -> ToyModel:
    return ToyModel(replace(ENDLESS, perturbation=0.5), name="toy-draft")


async def generate_until_refused(swarm: Swarm, errors: list[Refused]) -> None:
    with pytest.raises(Refused) as error:
        await swarm.generate("a long story", max_tokens=2000)
    errors.append(error.value)


async def accepted_by_all(swarm: Swarm) -> int:
    return sum((await swarm.ledger.summary()).accepted_by_node.values())


async def test_law5_receipt_drain_writes_and_delivers_the_last_contributions(
    autojump_clock: MockClock,
) -> None:
    async with running_swarm(drafts=[draft()], target=ENDLESS) as swarm:
        errors: list[Refused] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(generate_until_refused, swarm, errors)
            await trio.sleep(2.5)
            await swarm.coordinator.drain("stopping")
            # Now: whoever runs the coordinator may end the process at once.
            num_accepted = swarm.coordinator.load.num_accepted
            assert num_accepted > 20
            assert await accepted_by_all(swarm) == num_accepted
        assert (errors[0].status, errors[0].code) == (503, "shutting_down")
        await trio.sleep(2 * swarm.settings.latency_s)
        held = swarm.books[1].totals()
        assert [total.num_accepted for total in held] == [num_accepted]
        assert not len(swarm.coordinator.sessions)


async def test_drain_does_not_wait_for_nodes_that_do_not_read(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        await node.greet()
        (link,) = swarm.coordinator.leases.nodes
        for _ in range(400):
            link.post(Ping(1))  # more than fits into the link
        started_s = trio.current_time()
        await swarm.coordinator.drain("stopping")
        assert trio.current_time() - started_s <= 1.0


async def test_law5_receipt_what_was_earned_is_written_when_the_engine_is_lost(
    autojump_clock: MockClock,
) -> None:
    """No drain, no warning: the coordinator ends with an error between two segments."""
    seen: list[Swarm] = []
    with pytest.raises(EngineError, match="beyond repair"), outside_groups():
        await _lose_the_engine(seen)
    (swarm,) = seen
    assert await accepted_by_all(swarm) == swarm.coordinator.load.num_accepted > 10


async def _lose_the_engine(seen: list[Swarm]) -> None:
    async with running_swarm(drafts=[draft()], target=ENDLESS) as swarm:
        seen.append(swarm)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(swarm.generate, "a long story", max_tokens=2000))
            await trio.sleep(1.9)
            swarm.engine._mailbox.give_up("the engine is beyond repair")


async def test_an_engine_that_never_starts(autojump_clock: MockClock) -> None:
    swarm = Swarm(SwarmSettings(), ENDLESS)
    swarm.engine._mailbox.give_up("there is no such model")
    with pytest.raises(EngineError, match="no such model"), outside_groups():
        await swarm.coordinator.run()


async def test_a_dead_database_stops_neither_answers_nor_nodes(autojump_clock: MockClock) -> None:
    async with running_swarm(drafts=[draft()], target=ENDLESS) as swarm:
        record, read = swarm.ledger.record, swarm.ledger.receipts_after
        swarm.ledger.record = away  # type: ignore[method-assign,assignment]
        swarm.ledger.receipts_after = away  # type: ignore[method-assign,assignment]
        for prompt in ("one", "two"):
            got = await swarm.generate(prompt, max_tokens=100)
            assert got.token_ids == swarm.expected(prompt, max_tokens=100)
            assert got.stats is not None
            assert got.stats.num_accepted_by_node
        assert await accepted_by_all(swarm) == 0
        swarm.ledger.record, swarm.ledger.receipts_after = record, read  # type: ignore[method-assign]
        await trio.sleep(2.5)
        num_accepted = swarm.coordinator.load.num_accepted
        assert await accepted_by_all(swarm) == num_accepted
        assert [total.num_accepted for total in swarm.books[1].totals()] == [num_accepted]


async def away(*_: Sequence[Contribution]) -> tuple[SignedReceipt, ...]:
    await trio.sleep(0.5)
    raise StoreUnavailable("the server is lost")


async def test_drain_with_a_dead_database_ends(autojump_clock: MockClock) -> None:
    async with running_swarm(drafts=[draft()], target=ENDLESS) as swarm:
        swarm.ledger.record = away  # type: ignore[method-assign,assignment]
        errors: list[Refused] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(generate_until_refused, swarm, errors)
            await trio.sleep(1.5)
            with trio.fail_after(3):
                await swarm.coordinator.drain("stopping")
        assert errors


async def test_drain_ends_sessions_that_nobody_reads(autojump_clock: MockClock) -> None:
    """Their clients hear of it when they read; engine and nodes are free at once."""
    async with running_swarm(target=ENDLESS) as swarm:
        asked = request("unread", 500, 0.8, 0)
        async with swarm.coordinator.generations.generate(asked) as events:
            await trio.sleep(0.5)
            await swarm.coordinator.drain("stopping")
            num_steps = swarm.coordinator.load.num_steps
            await trio.sleep(1)
            assert swarm.coordinator.load.num_steps <= num_steps + 2
            with pytest.raises(Refused, match="stopping"):
                _ = [event async for event in events]
        await swarm.coordinator.sessions.until_empty()


async def test_how_full_it_is(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        assert swarm.coordinator.share_taken == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(swarm.generate, "one", max_tokens=500))
            await trio.sleep(0.1)
            assert swarm.coordinator.share_taken == pytest.approx(1 / 64)
            nursery.cancel_scope.cancel()
