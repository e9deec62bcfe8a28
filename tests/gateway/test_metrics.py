from collections.abc import Iterable

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.gateway.metrics import GatewayMetrics


class LoopOnly(Collector):
    """State that only the event loop may read."""

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("is_in_loop", "", value=trio.current_time() > 0)

    def describe(self) -> Iterable[Metric]:
        return ()


async def test_other_collectors_are_read_in_the_event_loop() -> None:
    registry = CollectorRegistry()
    registry.register(LoopOnly())
    text = (await GatewayMetrics(registry).render()).decode()
    assert "is_in_loop 1.0" in text
    assert "specedge_gateway_generations 0.0" in text
