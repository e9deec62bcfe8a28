"""A crowd of volunteers: nodes of all kinds that come and go, far more of them than sessions.

`python -m tests.simulator.crowd --nodes 10000 --sessions 200 --seconds 60`: every vertex of every
session is grown, sent, bound and judged by the real code, and every arrival and departure matched.
"""

import argparse
import gc
import math
import time
from dataclasses import replace
from random import Random

from tests.simulator.events import LinkQuality
from tests.simulator.models import USELESS
from tests.simulator.modes import plan_of
from tests.simulator.profiles import ENGINES, NodeCosts
from tests.simulator.traces import demo_book
from tests.simulator.world import NodePlan, World, WorldPlan

DRAFTS = (("small", 0.75), ("unshared", 0.1), ("large", 0.1), (USELESS, 0.05))
LARGE_LEVEL = 2.0
"""A level of the better draft model takes so many times longer."""


def some_node(random: Random, level_s: float, churn_s: float) -> NodePlan:
    """A volunteer as they come: device, link and draft model are drawn."""
    draft = random.choices([n for n, _ in DRAFTS], [share for _, share in DRAFTS])[0]
    level_s *= math.exp(random.gauss(0.0, 0.4)) * (LARGE_LEVEL if draft == "large" else 1.0)
    return NodePlan(
        costs=NodeCosts(
            level_s,
            level_s / 400,
            stall_rate=random.choice((0.0, 0.0, 0.001, 0.01)),
            stall_s=0.2,
        ),
        quality=LinkQuality(
            round_trip_s=0.03 * math.exp(random.gauss(0.0, 0.7)),
            jitter=random.uniform(0.0, 0.4),
            loss=random.choice((0.0, 0.001, 0.01)),
            churn_s=churn_s,
            away_s=churn_s / 5,
        ),
        draft=draft,
        max_sessions=random.choice((1, 2, 4, 8)),
    )


def crowd(num_nodes: int, seed: int, level_s: float, churn_s: float) -> tuple[NodePlan, ...]:
    random = Random(seed)
    return tuple(some_node(random, level_s, churn_s) for _ in range(num_nodes))


def collect_rarely() -> None:
    """A crowd's objects die by their reference counts: looking for cycles took a third of a run."""
    gc.freeze()
    gc.set_threshold(1_000_000, 10, 10)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.crowd", description=__doc__)
    parser.add_argument("--device", choices=ENGINES, default="big-70b")
    parser.add_argument("--mode", default="H")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--level-ms", type=float, default=15.0)
    parser.add_argument("--churn-s", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    base = WorldPlan(
        engine=ENGINES[options.device],
        num_sessions=options.sessions,
        num_tokens=1 << 40,
        max_s=options.seconds,
        warm_up=0.0,
        seed=options.seed,
    )
    nodes = crowd(options.nodes, options.seed, options.level_ms / 1000, options.churn_s)
    book = demo_book()
    alone = World(replace(plan_of("EN", base, ()), max_s=min(20.0, options.seconds)), book).run()
    started = time.process_time()
    world = World(plan_of(options.mode, base, nodes), book)
    built_s = time.process_time() - started
    collect_rarely()
    result = world.run()
    cpu_s = time.process_time() - started
    print(
        f"{options.nodes} nodes, {options.sessions} sessions, {world.agenda.now:.0f} s simulated "
        f"in {cpu_s:.0f} s of CPU ({built_s:.0f} s to build): {result.num_tokens} tokens, "
        f"{world.num_finished} generations, {world.num_breaks} breaks, "
        f"{sum(node.num_levels for node in world.nodes)} levels, "
        f"{sum(node.num_levels > 0 for node in world.nodes)} nodes drafted"
    )
    print(
        f"{result.full_tokens_per_s:.0f} tok/s, alone {alone.full_tokens_per_s:.0f}: "
        f"{result.full_tokens_per_s / alone.full_tokens_per_s:.2f}x; wrong sessions: "
        f"{len(world.wrong)}"
    )


if __name__ == "__main__":
    main()
