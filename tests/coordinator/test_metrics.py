"""The live network as Prometheus reads it."""

from prometheus_client import CollectorRegistry, generate_latest
from trio.testing import MockClock

from coordinator.engine.messages import StepDone
from coordinator.metrics import NetworkCollector
from tests.support.scripted_node import scripted_node
from tests.support.swarm import ENDLESS, running_swarm

PADDED = StepDone(*(9, 1.0, 1.1, 0.0, 1, []), num_padded=40, num_late=3, used_s=1.25, padded_s=2.5)


async def test_gauges_and_counters(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm, scripted_node(swarm) as node:
        await node.greet()
        await swarm.generate("one", max_tokens=20, volunteers="none")
        registry = CollectorRegistry()
        registry.register(NetworkCollector(swarm.coordinator.status))
        lines = generate_latest(registry).decode().splitlines()
        values = dict(line.split(" ") for line in lines if not line.startswith("#"))
        assert float(values["specedge_nodes"]) == 1
        assert float(values["specedge_sessions"]) == 0
        assert float(values["specedge_engine_ready"]) == 1
        assert float(values["specedge_committed_tokens_total"]) == 20
        assert float(values["specedge_accepted_tokens_total"]) == 0
        assert float(values["specedge_engine_restarts_total"]) == 0
        assert 0 < float(values["specedge_engine_busy_ratio"]) <= 1
        assert float(values["specedge_tokens_per_second"]) > 0
        assert "{" not in "".join(values)  # labels would be unbounded
        assert "padded" not in "".join(values)  # of an emulated device only
        swarm.coordinator.load.add_step(PADDED, num_tokens=0)
        padded = generate_latest(registry).decode()
        assert "specedge_padded_forwards_total 40.0" in padded
        assert "specedge_late_forwards_total 3.0" in padded
        assert "specedge_padded_seconds_total 2.5" in padded
        assert "specedge_padded_used_seconds_total 1.25" in padded
