"""The cells of the pipeline benchmark, simulated, beside what real processes made of them.

`python -m tests.simulator.measured` prints both. `data/emulated.json` holds rows of the benchmark
(`make bench ARGS="pipeline --json FILE"`); of each the simulator knows from its name what was
served, and serves the same prompts.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from coordinator.scheduler.plan import FixedTree
from coordinator.settings import Lockstep
from tests.benchmarks.cells import all_cells
from tests.benchmarks.clients import WARM_UP_TOKENS
from tests.benchmarks.figures import MOST_LATE
from tests.benchmarks.servings import NodeGroup, Serving
from tests.simulator.events import LinkQuality
from tests.simulator.models import LIAR
from tests.simulator.profiles import ENGINES, NODES
from tests.simulator.traces import DATA, TraceBook, demo_book
from tests.simulator.world import NodePlan, World, WorldPlan

DRAFTS = {"demo-draft": "small", "demo-target": "target"}
BACK_S = 0.8
"""A link that was dropped is there again after so long, in the mean: a node's first pause is 0.5 to
1 s (`node.link.backoff_s`), and then it has to say hello."""
LEAST_JOBS = 16
NUM_ROUNDS = 3
"""As many tokens are counted as all jobs have so many times: hard texts count as much as others."""
MOST_ERROR = 0.08
"""Of the simulator beside real processes, which also take what the emulated devices do not."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of the benchmark."""

    name: str
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Compared:
    """Tokens per second of real processes in emulated time, and of the simulator."""

    name: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        return self.simulated / self.measured - 1.0

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.measured:.0f} | {self.simulated:.0f} | {100 * self.error:+.1f}"
        )


class NotSimulated(ValueError):
    """The simulator has nothing like it: this machine's own speed, or an option it lacks."""


def measured_rows() -> list[Measured]:
    """Without those in which too many forwards were late: they say something of the machine."""
    rows = json.loads((DATA / "emulated.json").read_text("utf-8"))["rows"]
    return [
        Measured(row["name"], row["tokens_per_s"]) for row in rows if row["late_share"] <= MOST_LATE
    ]


def servings() -> dict[str, Serving]:
    """All that the benchmark can measure, by name."""
    return {serving.name: serving for cell in all_cells() for serving in cell.servings}


def world_of(serving: Serving) -> WorldPlan:
    """The same situation in virtual time. Raises NotSimulated."""
    network = serving.network
    if network.device not in ENGINES:
        raise NotSimulated(f"{serving.name} runs at this machine's own speed")
    options = _options(network.serve)
    tree = options.pop("--engine-tree", "")
    lockstep = options.pop("--lockstep", "")
    plan = WorldPlan(
        engine=ENGINES[network.device],
        nodes=tuple(node for group in network.nodes for node in _nodes(group)),
        num_sessions=serving.num_sessions,
        temperature=serving.temperature,
        has_ngram="--no-ngram" not in options,
        max_batch=int(options.pop("--max-batch", "0")),
        engine_draft=DRAFTS[options.pop("--engine-draft")] if "--engine-draft" in options else "",
        tree=_tree(tree),
        lockstep=Lockstep.parse(lockstep) if lockstep else None,
        is_prefill_free=False,
    )
    if unknown := set(options) - {"--no-ngram"}:
        raise NotSimulated(f"{serving.name} has {', '.join(unknown)}")
    return plan


def compare(row: Measured, serving: Serving, book: TraceBook) -> Compared:
    """Simulate a row. Raises NotSimulated."""
    plan = world_of(serving)
    jobs = book.at(plan.temperature)[: max(LEAST_JOBS, plan.num_sessions)]
    # In the benchmark the sessions' first jobs rise in length up to the longest.
    num_warm_up = WARM_UP_TOKENS * (plan.num_sessions + 1) // 2
    num_tokens = num_warm_up + NUM_ROUNDS * sum(trace.num_new for trace in jobs)
    plan = replace(plan, num_tokens=num_tokens, warm_up=num_warm_up / num_tokens)
    world = World(plan, replace(book, traces=jobs))
    result = world.run()
    assert not world.wrong
    return Compared(row.name, row.tokens_per_s, plan.num_sessions / result.itl_s)


def compare_all(book: TraceBook, name_part: str = "") -> Iterator[Compared]:
    """Every measured row that the simulator can do, one after the other."""
    known = servings()
    for row in measured_rows():
        if name_part not in row.name or row.name not in known:
            continue
        try:
            yield compare(row, known[row.name], book)
        except NotSimulated:
            continue


def _options(arguments: tuple[str, ...]) -> dict[str, str]:
    """Options with their values, "" for those without."""
    found: dict[str, str] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name = argument
            found[name] = ""
        else:
            found[name] = argument
    return found


def _tree(text: str) -> FixedTree | None:
    if text in ("", "auto"):
        return None
    depth, width = text.split("x")
    return FixedTree(int(depth), int(width))


def _nodes(group: NodeGroup) -> tuple[NodePlan, ...]:
    options = _options(group.arguments)
    churn_s = float(options.pop("--link-churn-s", "0"))
    is_liar = options.pop("--drafting", "") == "random"
    if options or group.profile not in NODES or len(group.draft_models) > 1:
        raise NotSimulated(f"a node of {group.profile!r} with {', '.join(options)}, or a choice")
    quality = LinkQuality(group.round_trip_ms / 1000, churn_s=churn_s, away_s=BACK_S)
    draft = LIAR if is_liar else DRAFTS[group.draft_models[0]]
    return (NodePlan(NODES[group.profile], quality, draft),) * group.count


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.measured", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    options = parser.parse_args()
    print("| serving | measured tok/s | simulated | error %\n|---|---|---|---")
    for compared in compare_all(demo_book(), options.only):
        print(compared, flush=True)


if __name__ == "__main__":
    main()
