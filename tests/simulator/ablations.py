"""What single ideas of the policy are worth: each against the same world without it.

`python -m tests.simulator --table ablations`. An a100, 8 sessions with a node each at 15 ms, no
n-gram guesses, the engine not drafting.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

from specedge_p2p.tree.binding import BindLimits, BoundRows, SourceTree
from specedge_p2p.tree.ngram import NgramGuess
from tests.simulator.events import LinkQuality
from tests.simulator.modes import plan_of
from tests.simulator.pairs import Pair, paired
from tests.simulator.profiles import ENGINES
from tests.simulator.traces import TraceBook
from tests.simulator.world import NodePlan, World, WorldPlan

NEAR = LinkQuality(0.015)
ROWS = 8
"""Of one session, where the order of rows is judged: where all that survives has room, no order
matters."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Check:
    """A ratio of tokens per second, with its standard error, and what it must reach."""

    name: str
    value: float
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.value >= self.bound

    def __str__(self) -> str:
        word = "holds" if self.holds else "MISSED"
        return f"| {self.name} | {self.value:.3f} | {self.error:.3f} | {self.bound} | {word} |"


def bind_in_order_of_arrival(
    root_token: int,
    sources: Sequence[SourceTree],
    ngram: NgramGuess,
    ngram_hit_rate: float,
    limits: BindLimits,
) -> BoundRows:
    """Like `binding.bind` for one source and no n-gram, but what was sent first goes first."""
    assert not ngram.token_ids or not ngram_hit_rate
    assert len(sources) <= 1
    rows = [(root_token, -1, 0, 0)]
    if sources and sources[0].tree.is_full:
        tree = sources[0].tree.tree
        row_of = {tree.root: 0}
        for index in tree:  # ascending, and parents have lower indices
            depth = tree.vertex(index).depth - tree.root_vertex.depth
            if len(rows) > limits.max_rows or depth > limits.max_depth:
                continue
            row_of[index] = len(rows)
            parent = row_of[tree.vertex(index).parent]
            rows.append((tree.vertex(index).token_id, parent, depth, sources[0].source))
    token_ids, parents, depths, nodes = map(list, zip(*rows, strict=True))
    num = len(rows)
    return BoundRows(
        token_ids=token_ids,
        parents=parents,
        depths=depths,
        probs=[1.0] * num,
        sources=nodes,
        seconds=[0] * num,
        is_ngram=[False] * num,
        covered=[1.0] * num,
        is_own=[False] * num,
    )


@contextmanager
def rows_in_order_of_arrival() -> Iterator[None]:
    """Engines that bind within verify what arrived first."""
    with patch("coordinator.engine.session.bind", bind_in_order_of_arrival):
        yield


def ablations(book: TraceBook, num_tokens: int, seed: int = 1) -> list[Check]:
    """The order of rows, and the noise that target and drafts share."""
    base = WorldPlan(
        ENGINES["a100-32b"],
        num_sessions=8,
        warm_up=0.0,
        num_generations=max(1, num_tokens // book.traces[0].num_new),
        seed=seed,
    )
    return [_order(book, base), _noise(book, base, 0.7, 1.06), _noise(book, base, 1.0, 1.11)]


def _order(book: TraceBook, base: WorldPlan) -> Check:
    few = replace(base, max_rows=ROWS)
    by_probability = _run(book, few, "small")
    with rows_in_order_of_arrival():
        by_arrival = _run(book, few, "small")
    return _check("order", by_probability, by_arrival, 1.04)


def _noise(book: TraceBook, base: WorldPlan, temperature: float, bound: float) -> Check:
    base = replace(base, temperature=temperature)
    shared, own = (_run(book, base, draft) for draft in ("small", "unshared"))
    return _check(f"noise/T{temperature:g}", shared, own, bound)


def _run(book: TraceBook, base: WorldPlan, draft: str) -> World:
    nodes = (NodePlan(quality=NEAR, draft=draft),) * base.num_sessions
    world = World(plan_of("C-", base, nodes), book)
    world.run()
    assert not world.wrong
    return world


def _check(name: str, this: World, other: World, bound: float) -> Check:
    pair: Pair = paired(this, other)
    return Check(name, pair.ratio, pair.error, bound)


def table(book: TraceBook, num_tokens: int, say: Say) -> None:
    say("| ablation | ratio | standard error | bound | |")
    say("|---|---|---|---|---|")
    for check in ablations(book, num_tokens):
        say(str(check))
