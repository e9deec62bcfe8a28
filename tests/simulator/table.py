"""Tables of many worlds: what volunteers bring beside the best that an engine does alone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tests.simulator.events import LinkQuality
from tests.simulator.modes import FEW_SHAPES, plan_of
from tests.simulator.profiles import ENGINES, NODES
from tests.simulator.results import Result
from tests.simulator.traces import TraceBook
from tests.simulator.world import NodePlan, World, WorldPlan

Say = Callable[[str], None]
COMPARED = {name: costs for name, costs in ENGINES.items() if name != "paper-32b"}
"""The paper's device is an a100, too."""
LEVELS = ("rtx4090-1.7b", "paper-node", "slow-15ms")


@dataclass(frozen=True, slots=True)
class Alone:
    """Tokens per second of what an engine does without volunteers."""

    plain: float
    ngram: float
    tree: float
    tree_ngram: float
    shapes: tuple[str, str]

    @property
    def best(self) -> float:
        return max(self.plain, self.ngram, self.tree, self.tree_ngram)

    @property
    def best_without_ngram(self) -> float:
        return max(self.plain, self.tree)

    def __str__(self) -> str:
        speeds = (self.plain, self.ngram, self.tree, self.tree_ngram)
        numbers = ", ".join(f"{speed:.0f}" for speed in speeds)
        return f"{numbers} ({' '.join(self.shapes)})"


class Bench:
    """Runs worlds that have most in common.

    Args:
        book: the recording.
        base: of all worlds.
        shapes: fixed trees to try for the engine.
    """

    def __init__(
        self, book: TraceBook, base: WorldPlan, shapes: Sequence[str] = FEW_SHAPES
    ) -> None:
        self._book, self._base, self._shapes = book, base, shapes

    def run(self, mode: str, nodes: tuple[NodePlan, ...] = (), **changes: object) -> Result:
        """Raises AssertionError when a token was wrong."""
        world = World(plan_of(mode, replace(self._base, **changes), nodes), self._book)  # type: ignore[arg-type]
        result = world.run()
        assert not world.wrong, f"wrong tokens in {mode}"
        return result

    def alone(self) -> Alone:
        """The best of plain, n-gram and fixed trees with both."""
        trees = {shape: self._speed(f"B:{shape}") for shape in self._shapes}
        shape = max(trees, key=lambda name: trees[name])
        mixed = {name: self._speed(f"BN:{name}") for name in self._shapes}
        other = max(mixed, key=lambda name: mixed[name])
        return Alone(self._speed("A"), self._speed("N"), trees[shape], mixed[other], (shape, other))

    def _speed(self, mode: str) -> float:
        return self.run(mode).full_tokens_per_s


def node_at(round_trip_ms: float, node: str = "rtx4090-1.7b") -> NodePlan:
    return NodePlan(NODES[node], LinkQuality(round_trip_ms / 1000))


def equal_sessions(
    book: TraceBook,
    base: WorldPlan,
    temperatures: Sequence[float],
    num_nodes: int,
    round_trips_ms: Sequence[float],
    say: Say,
) -> None:
    """As many sessions with volunteers as without, no cap, by round trip."""
    heads = " | ".join(f"{rtt:g} ms" for rtt in round_trips_ms)
    say(f"{base.num_sessions} sessions, {num_nodes} nodes; with n-gram / without, engine drafts")
    say(f"| | A, N, B, BN | {heads} | 11 ms levels |")
    say("|---" * (len(round_trips_ms) + 3) + "|")
    for name, costs in COMPARED.items():
        for temperature in temperatures:
            started = time.perf_counter()
            bench = Bench(book, replace(base, engine=costs, temperature=temperature))
            alone = bench.alone()
            cells = [_ratios(bench, alone, (node_at(rtt),) * num_nodes) for rtt in round_trips_ms]
            cells.append(_ratios(bench, alone, (node_at(15, "paper-node"),) * num_nodes))
            say(f"| {name} T={temperature:g} | {alone} | {' | '.join(cells)} |")
            say(f"<!-- {time.perf_counter() - started:.0f} s -->")


def crossover(
    book: TraceBook, base: WorldPlan, num_nodes: int, round_trips_ms: Sequence[float], say: Say
) -> None:
    """Where volunteers do not pay: by engine, round trip and level time of the nodes."""
    levels = {1000 * NODES[name].level_s: name for name in LEVELS}
    say(f"{base.num_sessions} sessions, {num_nodes} nodes, over the same engine alone")
    say(f"| engine | round trip | {' | '.join(f'{ms:.0f} ms' for ms in levels)} |")
    say("| --- " * (len(levels) + 2) + "|")
    for name, costs in COMPARED.items():
        bench = Bench(book, replace(base, engine=costs))
        alone = bench.run("EN").full_tokens_per_s
        for rtt in round_trips_ms:
            helped = [
                bench.run("H", (node_at(rtt, node),) * num_nodes).full_tokens_per_s / alone
                for node in levels.values()
            ]
            say(f"| {name} | {rtt:g} ms | {' | '.join(f'{ratio:.2f}' for ratio in helped)} |")


def _ratios(bench: Bench, alone: Alone, nodes: tuple[NodePlan, ...]) -> str:
    merged = bench.run("C", nodes).full_tokens_per_s / alone.best
    bare = bench.run("C-", nodes).full_tokens_per_s / alone.best_without_ngram
    helped = bench.run("H", nodes).full_tokens_per_s / alone.best
    return f"{merged:.2f} / {bare:.2f}, {helped:.2f}"


def equal_batch(book: TraceBook, base: WorldPlan, temperatures: Sequence[float], say: Say) -> None:
    """24 sessions on 4 nodes, at most 8 of them in one step, against 8 sessions without."""
    say("24 sessions on 4 nodes, at most 8 in a step, 15 ms; against 8 sessions alone")
    say("| | A, N, B, BN | C / C- | H | 50 ms | useless | H, useless |")
    say("|---" * 7 + "|")
    for name, costs in COMPARED.items():
        for temperature in temperatures:
            few = replace(base, engine=costs, temperature=temperature, num_sessions=8)
            alone = Bench(book, few).alone()
            many = Bench(book, replace(few, num_sessions=24, max_batch=8))
            near, far = (node_at(15),) * 4, (node_at(50),) * 4
            useless = (replace(node_at(15), draft="useless"),) * 4

            def ratio(
                mode: str,
                nodes: tuple[NodePlan, ...],
                many: Bench = many,
                alone: Alone = alone,
            ) -> str:
                best = alone.best_without_ngram if mode.endswith("-") else alone.best
                return f"{many.run(mode, nodes).full_tokens_per_s / best:.2f}"

            cells = [
                f"{ratio('C', near)} / {ratio('C-', near)}",
                ratio("H", near),
                ratio("C", far),
                ratio("C", useless),
                ratio("H", useless),
            ]
            say(f"| {name} T={temperature:g} | {alone} | {' | '.join(cells)} |")
