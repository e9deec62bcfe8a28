"""The live network for Prometheus, read when it is asked for."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.status import Status


class NetworkCollector(Collector):
    """No labels: peers and sessions would be unbounded."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        network = self._status.network()
        for name, text, value in (
            ("nodes", "Connected nodes", len(network.nodes)),
            ("sessions", "Live sessions", len(network.sessions)),
            ("engine_ready", "1 while the engine serves", int(network.engine_is_ready)),
            ("engine_busy_ratio", "Share of the last seconds in a step", network.engine_busy),
            ("tokens_per_second", "Committed tokens, last seconds", network.tokens_per_s),
        ):
            yield GaugeMetricFamily(f"specedge_{name}", text, value)
        for name, text, total in (
            ("committed_tokens", "Tokens committed", network.num_tokens),
            ("accepted_tokens", "Tokens that a node had guessed", network.num_accepted),
            ("rounds", "Verification rounds", network.num_rounds),
            ("engine_seconds", "Time in engine steps", network.engine_s),
            ("node_bytes", "Bytes received from nodes", network.num_node_bytes),
            ("engine_restarts", "Engine processes brought back", network.num_engine_restarts),
        ):
            yield CounterMetricFamily(f"specedge_{name}", text, total)
