"""The live network as Prometheus reads it."""

from functools import partial

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest
from trio.testing import MockClock

from coordinator.engine.messages import Preempted, StepDone
from coordinator.metrics import NetworkCollector
from coordinator.scheduler.benefit import Estimate
from specedge_p2p.wire.messages import Close
from tests.support.links import proposal
from tests.support.scripted_node import scripted_node
from tests.support.swarm import ENDLESS, Swarm, running_swarm

PADDED = StepDone(*(9, 1.0, 1.1, 0.0, 1, []), num_padded=40, num_late=3, used_s=1.25, padded_s=2.5)

CRAMPED = StepDone(
    *(9, 1.0, 1.1, 0.0, 1, []), num_reused_rows=32, preempted=[Preempted(1, 20), Preempted(2, 30)]
)


def metrics(swarm: Swarm) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(NetworkCollector(swarm.coordinator.status))
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.split(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def test_gauges_and_counters(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm, scripted_node(swarm) as node:
        await node.greet()
        await swarm.generate("one", max_tokens=20, volunteers="none")
        values = metrics(swarm)
        assert values["specedge_nodes"] == 1
        assert values["specedge_nodes_resting"] == 0
        assert values["specedge_sessions"] == 0
        assert values["specedge_engine_ready"] == 1
        assert values["specedge_committed_tokens_total"] == 20
        assert values["specedge_accepted_tokens_total"] == 0
        assert values["specedge_engine_restarts_total"] == 0
        assert 0 < values["specedge_engine_busy_ratio"] <= 1
        assert values["specedge_tokens_per_second"] > 0


async def test_a_node_that_rests_is_counted(autojump_clock: MockClock) -> None:
    async with (
        running_swarm(target=ENDLESS) as swarm,
        scripted_node(swarm) as node,
        trio.open_nursery() as nursery,
    ):
        await node.greet()
        nursery.start_soon(partial(swarm.generate, "one", max_tokens=1000))
        opened = await node.hear_session()
        number, end = opened.session_no, opened.num_tokens
        await node.say(proposal([2], [0], session_no=number, base_position=end))
        await node.hear(Close)
        assert metrics(swarm)["specedge_nodes_resting"] == 1
        nursery.cancel_scope.cancel()


async def test_what_the_engine_costs_and_who_guesses(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        await swarm.generate("one", max_tokens=20, volunteers="none")
        values = metrics(swarm)
        settings = swarm.settings
        one_row_s = settings.step_time_s + settings.row_time_s
        assert values["specedge_step_time_seconds"] == pytest.approx(one_row_s)
        assert values["specedge_row_time_seconds"] == pytest.approx(settings.row_time_s)
        assert 0 < values["specedge_row_price_tokens"] <= 1
        assert values["specedge_engine_steps_total"] == swarm.coordinator.load.num_steps
        assert values["specedge_engine_levels_total"] == 0
        assert values["specedge_preempted_sessions_total"] == 0
        assert values["specedge_reused_rows_total"] == 0
        assert {f'specedge_ngram_hit_ratio{{order="{order}"}}' for order in (4, 3, 2)} < set(values)
        guessed = [num for name, num in values.items() if "guessed_tokens_total{by=" in name]
        assert sum(guessed) == 20
        assert len(guessed) == 4


async def test_no_benefit_is_told_before_it_is_known(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm:
        values = metrics(swarm)
        assert values["specedge_benefit_sessions"] == 0
        assert values["specedge_holdout_sessions_total"] == 0
        assert "specedge_benefit_ratio" not in values
        load = swarm.coordinator.load
        load.num_holdouts = 36
        load.benefit.estimate = lambda: Estimate(1.21, 1.15, 1.27, 4000, 34)  # type: ignore[method-assign]
        values = metrics(swarm)
        assert values["specedge_benefit_ratio"] == 1.21
        assert values["specedge_benefit_low"] == 1.15
        assert values["specedge_benefit_high"] == 1.27
        assert values["specedge_benefit_sessions"] == 34
        assert values["specedge_benefit_drafted_sessions"] == 4000
        assert values["specedge_holdout_sessions_total"] == 36


async def test_law7_bounded_labels_name_no_peer_and_no_session(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm, scripted_node(swarm) as node:
        before = set(metrics(swarm))
        await node.greet()
        await swarm.generate("one", max_tokens=5)
        assert set(metrics(swarm)) == before


async def test_what_a_full_cache_did_is_counted(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm:
        for _ in range(3):
            swarm.coordinator.load.add_step(CRAMPED, num_tokens=0)
        values = metrics(swarm)
        assert values["specedge_preempted_sessions_total"] == 6
        assert values["specedge_reused_rows_total"] == 96


async def test_padded_forwards_are_told_of_an_emulated_device_only(
    autojump_clock: MockClock,
) -> None:
    async with running_swarm() as swarm:
        assert "padded" not in "".join(metrics(swarm))
        swarm.coordinator.load.add_step(PADDED, num_tokens=0)
        values = metrics(swarm)
        assert values["specedge_padded_forwards_total"] == 40
        assert values["specedge_late_forwards_total"] == 3
        assert values["specedge_padded_seconds_total"] == 2.5
        assert values["specedge_padded_used_seconds_total"] == 1.25
