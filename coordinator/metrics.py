"""The live network for Prometheus, read when it is asked for."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.status import Status
from specedge_p2p.views import PaddingView


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
        yield from _padding_metrics(network.padding)


def _padding_metrics(padding: PaddingView) -> Iterator[Metric]:
    """Nothing where the engine runs at its own speed."""
    if not padding.num_forwards:
        return
    for name, text, total in (
        ("padded_forwards", "Forwards padded to an emulated device", padding.num_forwards),
        ("late_forwards", "Of those, ended after their time", padding.num_late),
        ("padded_seconds", "Time that padded forwards were to take", padding.padded_s),
        ("padded_used_seconds", "Time that their real work took", padding.used_s),
    ):
        yield CounterMetricFamily(f"specedge_{name}", text, total)
