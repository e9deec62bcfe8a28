"""What the gateway counts. Labels are bounded: never a key, a node or an address."""

from dataclasses import dataclass

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coordinator.gateway.ports import GenerationStats

_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True, slots=True)
class _Collected(Collector):
    metrics: tuple[Metric, ...]

    def collect(self) -> tuple[Metric, ...]:
        return self.metrics


class GatewayMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = Counter(
            "specedge_http_requests",
            "HTTP requests answered",
            ("route", "status"),
            registry=registry,
        )
        self._tokens = Counter(
            "specedge_gateway_tokens",
            "Tokens of finished generations",
            ("kind",),
            registry=registry,
        )
        self._first_token = Histogram(
            "specedge_time_to_first_token_seconds",
            "From the request to its first text",
            registry=registry,
            buckets=_TTFT_BUCKETS_S,
        )
        self._generations = Gauge(
            "specedge_gateway_generations", "Generations running now", registry=registry
        )

    def request_done(self, route: str, status: int) -> None:
        """`route` is the pattern of a declared route, never what the client typed."""
        self._requests.labels(route, str(status)).inc()

    def generation_started(self) -> None:
        self._generations.inc()

    def generation_left(self) -> None:
        self._generations.dec()

    def first_text(self, after_s: float) -> None:
        self._first_token.observe(after_s)

    def generation_finished(self, stats: GenerationStats) -> None:
        self._tokens.labels("prompt").inc(stats.num_prompt_tokens)
        self._tokens.labels("completion").inc(stats.num_tokens)

    async def render(self) -> bytes:
        """The text format of Prometheus.

        Collected in the event loop, where the state of the program may be read, and written down in
        a thread, since many series take milliseconds.
        """
        collected = _Collected(tuple(self._registry.collect()))
        return await trio.to_thread.run_sync(generate_latest, collected)
