"""Law 3 in drawn worlds: what volunteers of all kinds cost an engine that they do not help.

`python -m tests.simulator.floor --worlds 50`: each world is drawn (load, cap, engine, temperature,
links, speeds, churn, stalls, useless nodes) and run twice on the same prompts, with its nodes and
without; the planner is the same, and drafts by itself where that pays.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import mean

from tests.simulator.crowd import some_node
from tests.simulator.models import LIAR, USELESS
from tests.simulator.modes import plan_of
from tests.simulator.pairs import Pair, paired
from tests.simulator.profiles import ENGINES
from tests.simulator.traces import TraceBook, demo_book
from tests.simulator.world import NodePlan, World, WorldPlan

LEAST_MEAN = 0.99
LEAST, LEAST_CAPPED_USELESS = 0.97, 0.93
DOUBT = 3.0
"""A world breaks the floor when it is below by more than so many standard errors."""
TURNS = 3
"""Generations of each session."""


@dataclass(frozen=True, slots=True)
class DrawnWorld:
    plan: WorldPlan
    nodes: tuple[NodePlan, ...]

    @property
    def floor(self) -> float:
        is_useless = all(node.draft in (USELESS, LIAR) for node in self.nodes)
        return LEAST_CAPPED_USELESS if self.plan.max_batch and is_useless else LEAST

    def __str__(self) -> str:
        plan = self.plan
        engine = next(name for name, costs in ENGINES.items() if costs == plan.engine)
        nodes = ", ".join(
            f"{node.draft} {1000 * node.costs.level_s:.1f} ms at "
            f"{1000 * node.quality.round_trip_s:.0f} ms for {node.max_sessions}"
            for node in self.nodes
        )
        return (
            f"seed {plan.seed}: {engine} T={plan.temperature:g} {plan.num_sessions} sessions, "
            f"cap {plan.max_batch}; {nodes}"
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """A drawn world, and its speed with nodes as a share of that without."""

    world: DrawnWorld
    pair: Pair

    @property
    def is_broken(self) -> bool:
        return self.pair.ratio < self.world.floor - DOUBT * self.pair.error

    def __str__(self) -> str:
        word = "  BROKEN" if self.is_broken else ""
        return f"{self.pair.ratio:.3f} +- {self.pair.error:.3f}  {self.world}{word}"


def drawn_world(seed: int, turns: int = TURNS) -> DrawnWorld:
    """The world of a seed."""
    random = Random(seed)
    num_sessions = random.choice((2, 4, 6))
    plan = WorldPlan(
        engine=ENGINES[random.choice(("h200-14b", "a100-32b", "big-70b"))],
        num_sessions=num_sessions,
        temperature=random.choice((0.0, 0.7, 1.0)),
        max_batch=random.choice((0, 0, 2)),
        num_generations=turns * num_sessions,
        warm_up=0.0,
        seed=seed,
    )
    level_s = random.choice((0.004, 0.01, 0.03))
    nodes = [
        some_node(random, level_s, churn_s=random.choice((1.0, 10.0)))
        for _ in range(random.randint(1, 3))
    ]
    draw = random.random()
    if draw < 0.3:
        nodes = [replace(node, draft=USELESS if draw < 0.15 else LIAR) for node in nodes]
    return DrawnWorld(plan, tuple(nodes))


def judge(drawn: DrawnWorld, book: TraceBook) -> Judged:
    """Run a world with its nodes and without. Raises AssertionError when a token was wrong."""
    alone, helped = (World(plan_of(mode, drawn.plan, drawn.nodes), book) for mode in ("EN", "H"))
    for world in (alone, helped):
        world.run()
        assert not world.wrong, f"wrong tokens in {drawn}"
    return Judged(drawn, paired(helped, alone))


def judge_all(
    seeds: Iterable[int], book: TraceBook, say: Callable[[Judged], None] | None = None
) -> list[Judged]:
    judged = []
    for seed in seeds:
        judged.append(judge(drawn_world(seed), book))
        if say is not None:
            say(judged[-1])
    return judged


def mean_ratio(judged: Sequence[Judged]) -> float:
    return mean(one.pair.ratio for one in judged)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.floor", description=__doc__)
    parser.add_argument("--worlds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    options = parser.parse_args()
    started = time.process_time()
    seeds = range(options.first, options.first + options.worlds)
    judged = judge_all(seeds, demo_book(), lambda one: print(one, flush=True))
    num_broken = sum(one.is_broken for one in judged)
    print(
        f"{len(judged)} worlds, mean {mean_ratio(judged):.3f}, least "
        f"{min(one.pair.ratio for one in judged):.3f}, {num_broken} broken; "
        f"{time.process_time() - started:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
