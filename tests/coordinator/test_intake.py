"""A node's link from Hello to its end, with scripted nodes in virtual time."""

from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from coordinator.ledger.ports import SignedReceipt
from coordinator.settings import Limits
from coordinator.store.errors import StoreUnavailable
from specedge_p2p.overlay.ports import LinkClosed
from specedge_p2p.tasks import TaskStatus
from specedge_p2p.wire.messages import (
    Capacity,
    Drain,
    Goodbye,
    Open,
    Ping,
    Pong,
    Receipt,
    ReceiptRequest,
    Refuse,
    Verdict,
)
from tests.support.links import changed
from tests.support.scripted_node import HELLO, dialled, scripted_node, settled
from tests.support.swarm import ENDLESS as _TARGET
from tests.support.swarm import Swarm, SwarmSettings, identity, running_swarm


async def test_a_peer_that_says_nothing_is_dropped(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as mute:
        started_s = trio.current_time()
        with pytest.raises(LinkClosed):
            await mute.link.receive()
        assert 10 <= trio.current_time() - started_s < 11


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (changed(HELLO, min_version=2, max_version=9), "version"),
        (changed(HELLO, min_version=0, max_version=0), "version"),
        (changed(HELLO, tokenizer_fingerprint=b"another"), "tokenizer"),
    ],
)
async def test_a_node_that_does_not_fit_hears_why(
    autojump_clock: MockClock, hello: object, code: str
) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        await node.say(hello)  # type: ignore[arg-type]
        assert (await node.hear(Refuse)).code == code
        with pytest.raises(LinkClosed):
            await node.link.receive()
        assert not swarm.coordinator.leases.nodes


async def test_law7_bounded_nodes_are_refused_clearly(autojump_clock: MockClock) -> None:
    settings = SwarmSettings(limits=Limits(max_nodes=2))
    async with (
        running_swarm(settings) as swarm,
        scripted_node(swarm, 1) as one,
        scripted_node(swarm, 2) as two,
    ):
        await one.greet()
        await two.greet()
        async with scripted_node(swarm, 3) as three:
            await three.say(HELLO)
            refuse = await three.hear(Refuse)
            assert refuse.code == "full"
            assert "2 nodes" in refuse.text
        await two.say(Goodbye())
        await settled(swarm)
        async with scripted_node(swarm, 4) as four:
            await four.greet()


async def test_law7_bounded_nodes_that_come_at_once_too(autojump_clock: MockClock) -> None:
    settings = SwarmSettings(limits=Limits(max_nodes=3))
    async with running_swarm(settings) as swarm, trio.open_nursery() as nursery:
        for number in range(1, 11):
            nursery.start_soon(_greet_and_stay, swarm, number)
        await settled(swarm)
        assert len(swarm.coordinator.leases.nodes) == 3
        nursery.cancel_scope.cancel()


async def _greet_and_stay(swarm: Swarm, number: int) -> None:
    async with scripted_node(swarm, number) as node:
        await node.say(HELLO)
        with suppress(LinkClosed):
            await node.read_for_ever()


async def test_a_full_coordinator_takes_a_known_node_back(autojump_clock: MockClock) -> None:
    async with running_swarm(SwarmSettings(limits=Limits(max_nodes=1))) as swarm:
        overlay = swarm.network.join(identity(1).peer_id)
        async with dialled(swarm, overlay) as stale, dialled(swarm, overlay) as fresh:
            await stale.greet()
            await fresh.greet()


async def test_before_the_engine_is_ready_nodes_are_asked_to_come_again(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        swarm = Swarm(SwarmSettings(), _TARGET)

        async def serve(task_status: TaskStatus[None]) -> None:
            overlay = swarm.coordinator._parts.overlay
            async with overlay.serve("/specedge/draft/1", swarm.coordinator.intake.serve):
                task_status.started(None)
                await trio.sleep_forever()

        await nursery.start(serve)
        async with scripted_node(swarm) as node:
            await node.say(HELLO)
            assert (await node.hear(Refuse)).code == "not_ready"
        nursery.cancel_scope.cancel()


async def test_a_second_link_of_a_peer_replaces_the_first(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm:
        overlay = swarm.network.join(identity(1).peer_id)
        async with dialled(swarm, overlay) as first:
            await first.greet()
            async with dialled(swarm, overlay) as second:
                await second.greet()
                with pytest.raises(LinkClosed):
                    await first.read_for_ever()
                assert len(swarm.coordinator.leases.nodes) == 1
                await second.hear(Ping)
                await second.hear(Ping)


async def test_a_silent_node_is_dropped_after_three_heartbeats(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        await node.greet()
        await node.hear(Ping)
        await trio.sleep(5.5)
        assert swarm.coordinator.leases.nodes
        await trio.sleep(1.0)
        assert not swarm.coordinator.leases.nodes


async def test_the_round_trip_is_measured(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        await node.greet()
        await node.say(Pong(99))  # answers nothing
        await node.hear(Ping)
        await settled(swarm)
        (link,) = swarm.coordinator.leases.nodes
        assert link.round_trip_s == pytest.approx(0.015, abs=0.002)


async def test_law7_bounded_a_node_that_does_not_read_loses_its_link(
    autojump_clock: MockClock,
) -> None:
    """It goes on speaking, so silence does not give it away."""
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        await node.greet()
        (link,) = swarm.coordinator.leases.nodes
        with suppress(LinkClosed):
            while trio.current_time() < 60:
                await node.say(ReceiptRequest(0), Capacity(8))
                for _ in range(50):
                    link.post(Ping(1))
                await trio.sleep(0.1)
        assert not swarm.coordinator.leases.nodes
        assert trio.current_time() < 20


async def test_law7_bounded_the_outbox_of_a_node(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        await node.greet()
        (link,) = swarm.coordinator.leases.nodes
        for _ in range(5000):
            link.post(Ping(1))
        assert len(link._outbox) <= 4096
        await settled(swarm)
        assert not swarm.coordinator.leases.nodes


async def test_hello_and_goodbye_in_one_frame(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        await node.say(HELLO, Goodbye())
        with pytest.raises(LinkClosed):
            await node.link.receive()
        assert not swarm.coordinator.leases.nodes


async def test_goodbye_while_the_coordinator_has_something_to_say(
    autojump_clock: MockClock,
) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        await node.greet()
        # The ledger is asked between the two: time enough for the writer to wake.
        await node.say(ReceiptRequest(0), Goodbye())
        (link,) = swarm.coordinator.leases.nodes
        await trio.sleep(swarm.settings.latency_s)
        link.post(Ping(5))
        await settled(swarm)
        assert not swarm.coordinator.leases.nodes


async def test_a_dead_ledger_does_not_keep_nodes_away(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        swarm.ledger.receipts_after = _unavailable  # type: ignore[method-assign,assignment]
        await node.greet()
        await node.say(ReceiptRequest(0))
        await node.hear(Ping)
        await node.hear(Ping)
        assert len(swarm.coordinator.leases.nodes) == 1
        assert "waits for its receipts" in caplog.text


async def _unavailable(*_: object) -> tuple[SignedReceipt, ...]:
    await trio.lowlevel.checkpoint()
    raise StoreUnavailable("the disk is full")


async def test_drain_is_told_and_nobody_joins_after_it(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm, scripted_node(swarm, 1) as node:
        await node.greet()
        await swarm.coordinator.drain("stopping")
        assert (await node.hear(Drain)).reason == "stopping"
        async with scripted_node(swarm, 2) as late:
            await late.say(HELLO)
            refuse = await late.hear(Refuse)
            assert (refuse.code, refuse.text) == ("not_ready", "stopping")


async def test_a_node_in_the_middle_of_a_session_hears_everything_before_the_drain_ends(
    autojump_clock: MockClock,
) -> None:
    async with running_swarm(target=_TARGET) as swarm, scripted_node(swarm) as node:
        await node.greet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_generate_until_refused, swarm)
            await node.hear_session()
            await node.hear(Verdict)
            await swarm.coordinator.drain("stopping")
        nodes_heard = trio.current_time()
        await node.hear(Drain)
        assert trio.current_time() - nodes_heard < 0.1
        assert not [m for m in node.heard[node.heard.index(Drain("stopping")) :] if _is_open(m)]


def _is_open(message: object) -> bool:
    return isinstance(message, Open | Receipt)


async def _generate_until_refused(swarm: Swarm) -> None:
    from coordinator.gateway.ports import Refused

    with pytest.raises(Refused, match="stopping"):
        await swarm.generate("a long story", max_tokens=1000)
