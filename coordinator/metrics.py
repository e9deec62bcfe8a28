"""The live network for Prometheus, read when it is asked for."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.status import Status
from specedge_p2p.views import BenefitView, EngineView, GuessesView, NetworkView, PaddingView


class NetworkCollector(Collector):
    """Labels have a few fixed values: never a peer or a session, which would be unbounded."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        network = self._status.network()
        yield from _network(network)
        yield from _benefit(network.benefit)
        yield from _guesses(network.guesses)
        yield from _engine(network.engine)
        yield from _padding(network.padding)


def _network(network: NetworkView) -> Iterator[Metric]:
    yield from _gauges(
        ("nodes", "Connected nodes", len(network.nodes)),
        (
            "nodes_resting",
            "Nodes that get no session for a while, because their guesses do not pay",
            sum(node.rest_s > 0 for node in network.nodes),
        ),
        ("sessions", "Live sessions", len(network.sessions)),
        ("engine_ready", "1 while the engine serves", int(network.engine_is_ready)),
        ("engine_busy_ratio", "Share of the last seconds in a step", network.engine_busy),
        ("tokens_per_second", "Committed tokens, last seconds", network.tokens_per_s),
    )
    yield from _counters(
        ("committed_tokens", "Tokens committed", network.num_tokens),
        ("accepted_tokens", "Tokens that a node had guessed", network.num_accepted),
        ("rounds", "Verification rounds", network.num_rounds),
        ("engine_seconds", "Time in engine steps", network.engine_s),
        ("node_bytes", "Bytes received from nodes", network.num_node_bytes),
        ("engine_restarts", "Engine processes brought back", network.num_engine_restarts),
        ("holdout_sessions", "Sessions held out from volunteers", network.num_held_out),
    )


def _benefit(benefit: BenefitView) -> Iterator[Metric]:
    yield from _gauges(
        ("benefit_sessions", "Held-out sessions compared", benefit.num_holdouts),
        ("benefit_drafted_sessions", "Drafted sessions compared", benefit.num_drafted),
    )
    for name, text, value in (
        ("benefit_ratio", "Tokens per engine second with volunteers over without", benefit.ratio),
        ("benefit_low", "Lower end of its 95 % interval", benefit.low),
        ("benefit_high", "Upper end of its 95 % interval", benefit.high),
    ):
        # With too little data there is no sample, so that nobody plots a guess.
        yield from () if value is None else _gauges((name, text, value))


def _guesses(guesses: GuessesView) -> Iterator[Metric]:
    tokens = CounterMetricFamily(
        "specedge_guessed_tokens", "Committed tokens by who had guessed them", labels=("by",)
    )
    for by, num in (
        ("node", guesses.num_by_nodes),
        ("ngram", guesses.num_by_ngram),
        ("engine", guesses.num_by_engine),
        ("nobody", guesses.num_by_nobody),
    ):
        tokens.add_metric((by,), num)
    yield tokens
    yield from _counters(
        ("twice_guessed_tokens", "Accepted tokens that two nodes had guessed", guesses.num_by_two)
    )


def _engine(engine: EngineView) -> Iterator[Metric]:
    yield from _gauges(
        ("row_price_tokens", "Expected tokens that one more row must bring", engine.row_price),
        ("step_time_seconds", "Learned time of a step with one row", engine.step_time_s),
        ("row_time_seconds", "Learned time of each further row", engine.row_time_s),
    )
    yield from _counters(
        ("engine_steps", "Engine steps", engine.num_steps),
        ("engine_levels", "Levels of the engine's own draft model", engine.num_levels),
        ("engine_level_rows", "Rows in them", engine.num_level_rows),
        ("engine_level_seconds", "Time in them", engine.level_s),
        ("preempted_sessions", "Sessions that a full cache made wait", engine.num_preempted),
        ("reused_rows", "Prompt rows shared instead of computed", engine.num_reused_rows),
    )
    rates = GaugeMetricFamily(
        "specedge_ngram_hit_ratio", "Share of n-gram guesses that are right", labels=("order",)
    )
    for rate in engine.ngram:
        rates.add_metric((str(rate.order),), rate.hit_rate)
    yield rates


def _padding(padding: PaddingView) -> Iterator[Metric]:
    """Nothing where the engine runs at its own speed."""
    if padding.num_forwards:
        yield from _counters(
            ("padded_forwards", "Forwards padded to an emulated device", padding.num_forwards),
            ("late_forwards", "Of those, ended after their time", padding.num_late),
            ("padded_seconds", "Time that padded forwards were to take", padding.padded_s),
            ("padded_used_seconds", "Time that their real work took", padding.used_s),
        )


def _gauges(*samples: tuple[str, str, float]) -> Iterator[Metric]:
    for name, text, value in samples:
        yield GaugeMetricFamily(f"specedge_{name}", text, value)


def _counters(*samples: tuple[str, str, float]) -> Iterator[Metric]:
    for name, text, total in samples:
        yield CounterMetricFamily(f"specedge_{name}", text, total)
