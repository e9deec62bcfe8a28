"""`python -m tests.simulator`: one world, one line; `--table` for many."""

import argparse
import time

from tests.simulator import ablations
from tests.simulator.events import LinkQuality
from tests.simulator.modes import plan_of
from tests.simulator.profiles import ENGINES, NODES
from tests.simulator.results import Result
from tests.simulator.table import crossover, equal_batch, equal_sessions
from tests.simulator.traces import demo_book
from tests.simulator.world import NodePlan, World, WorldPlan


def line(name: str, result: Result, real_s: float) -> str:
    return (
        f"{name}: {result.full_tokens_per_s:.0f} tok/s (with turnover {result.tokens_per_s:.0f}), "
        f"ITL {1000 * result.itl_s:.1f} / p95 gap {1000 * result.gap95_s:.0f} ms, "
        f"{result.tokens_per_engine_ms:.3f} tok/engine ms, rows/token {result.rows_per_token:.2f}, "
        f"sent/token {result.sent_per_token:.0f}, levels/step {result.levels_per_step:.2f}, "
        f"by node {result.share_by_node:.2f} n-gram {result.share_by_ngram:.2f} "
        f"own {result.share_by_own:.2f}, idle {result.idle_share:.3f}; "
        f"{result.num_tokens} tokens in {result.simulated_s:.1f} s, {real_s:.1f} s real"
    )


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--device", choices=ENGINES, default="h200-14b")
    parser.add_argument("--mode", default="C", help="see tests/simulator/modes.py")
    parser.add_argument("--max-batch", type=int, default=0)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--node", choices=NODES, default="rtx4090-1.7b")
    parser.add_argument("--draft", default="small")
    parser.add_argument("--rtt-ms", type=float, default=15.0)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--table",
        choices=("sessions", "batch", "ablations", "crossover"),
        help="many worlds instead of one",
    )
    parser.add_argument("--rtts", default="5,15,30,50,100", help="round trips of a table, in ms")
    options = parser.parse_args()
    node = NodePlan(NODES[options.node], LinkQuality(options.rtt_ms / 1000), options.draft)
    base = WorldPlan(
        engine=ENGINES[options.device],
        num_sessions=options.sessions,
        temperature=options.temperature,
        max_batch=options.max_batch,
        num_tokens=options.tokens,
        seed=options.seed,
    )
    rtts = [float(rtt) for rtt in options.rtts.split(",")]
    temperatures = (0.7, 0.0) if options.temperature == 0.7 else (options.temperature,)
    if options.table == "sessions":
        equal_sessions(demo_book(), base, temperatures, options.nodes, rtts, _say)
        return
    if options.table == "crossover":
        crossover(demo_book(), base, options.nodes, rtts, _say)
        return
    if options.table == "ablations":
        ablations.table(demo_book(), options.tokens, _say)
        return
    if options.table == "batch":
        equal_batch(demo_book(), base, temperatures, _say)
        return
    plan = plan_of(options.mode, base, (node,) * options.nodes)
    started = time.perf_counter()
    world = World(plan, demo_book())
    result = world.run()
    print(line(f"{options.device} {options.mode}", result, time.perf_counter() - started))
    if world.wrong:
        print(f"WRONG TOKENS in sessions {world.wrong}")


if __name__ == "__main__":
    main()
