"""Every idea that was taken from elsewhere, on against off.

In virtual time with the real policy, leases, matching and drafters on recorded tokens; only the
times of levels are taken on this machine, with the demo draft model.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Annotated

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.scheduler.plan import PlanLimits
from node.draft_cache import DraftCache, Growth
from node.drafter import DrafterSettings
from node.hardware import benchmark
from node.level_times import LevelShape
from specedge_p2p.lm.ports import LanguageModel, Rows, SamplingParams
from tests.benchmarks.figures import Check, percentile
from tests.benchmarks.machine import this_machine
from tests.benchmarks.small_world import SmallWorld
from tests.simulator.events import LinkQuality
from tests.simulator.profiles import ENGINES, NodeCosts
from tests.simulator.traces import Trace, demo_book
from tests.simulator.world import NodePlan

LONG_PROMPT = 2000
NO_PREFILL_SHARE = PlanLimits(prefill_tokens=4096, prefill_share=1e6)
FAST, SLOW = NodeCosts(0.006), NodeCosts(0.03)
HELD_OUT = ((1, 8, 64), (1, 32, 64), (2, 16, 64), (4, 16, 128), (6, 8, 64), (1, 16, 256))
"""(sessions, vertices of each, cached rows of each) of levels that no probe has."""


@dataclass(frozen=True, slots=True)
class SeedRow:
    """One idea.

    Args:
        off, on: the figure without it and with it.
        ratio: what the bound is about.
        at_least: whether the ratio must reach the bound or stay below it.
    """

    name: str
    unit: str
    off: float
    on: float
    ratio: float
    bound: float
    at_least: bool = False

    @property
    def check(self) -> Check:
        holds = self.ratio >= self.bound if self.at_least else self.ratio <= self.bound
        note = f"off {self.off:.3g}, on {self.on:.3g} {self.unit}"
        return Check(f"seed/{self.name}", self.ratio, self.bound, holds, note=note)


# --- prompts never harm running streams (Nexus) --------------------------------------------------


def prefill_interference(seconds: float = 6.0) -> SeedRow:
    """p99 gap of eight streams while long prompts arrive, over the same without them."""
    quiet = _p99_gap_s(PlanLimits(), seconds, num_per_s=0.0)
    on = _p99_gap_s(PlanLimits(), seconds, num_per_s=2.0)
    off = _p99_gap_s(NO_PREFILL_SHARE, seconds, num_per_s=2.0)
    return SeedRow("prefill", "ms p99 gap", 1000 * off, 1000 * on, on / quiet, 1.5)


def _p99_gap_s(limits: PlanLimits, seconds: float, num_per_s: float) -> float:
    traces = demo_book().at(0.7)
    long = long_trace(traces, LONG_PROMPT)
    world = SmallWorld(ENGINES["h200-14b"], limits, [*traces, long])
    for trace in traces[:8]:
        world.open(trace, again=True)
    for number in range(int(num_per_s * seconds)):
        world.agenda.at(1.0 + number / num_per_s, lambda: _ignore(world.open(long)))
    world.run(1.0 + seconds)
    streams = [n for n, commits in world.commits.items() if sum(c.num_tokens for c in commits) > 8]
    gaps = [gap for gap in world.gaps_s(streams) if gap]
    return percentile(gaps, 0.99)


def long_trace(traces: Sequence[Trace], num_prompt: int) -> Trace:
    """A request whose prompt is made of others', with an answer of eight tokens."""
    tokens = [token for trace in traces for token in trace.tokens]
    return Trace(num_prompt, tuple(tokens[: num_prompt + 8]), 0.7, 1, {})


# --- short requests overtake long ones (FastServe) -----------------------------------------------


def queues(num_jobs: int = 160) -> list[SeedRow]:
    """Completion times of a bimodal load on a capped engine against first come, first served."""
    on = _completions_s(PlanLimits(max_batch=4), num_jobs)
    off = _completions_s(PlanLimits(max_batch=4, has_queues=False), num_jobs)
    rows = []
    for name, figure, bound in (("mean", mean, 1.0), ("p95", _p95, 1.1)):
        before, after = 1000 * figure(off), 1000 * figure(on)
        rows.append(SeedRow(f"queues/{name}", "ms", before, after, after / before, bound))
    return rows


def _completions_s(limits: PlanLimits, num_jobs: int) -> list[float]:
    traces = demo_book().at(0.7)
    long = replace(long_trace(traces, 1500), tokens=long_trace(traces, 1500).tokens[:1500])
    long = replace(long, tokens=long.tokens + traces[0].tokens[-64:])
    world = SmallWorld(ENGINES["h200-14b"], limits, [*traces, long])
    random, at_s = Random(1), 0.0
    for _ in range(num_jobs):
        at_s += random.expovariate(11.0)
        trace = random.choice(traces)
        short = replace(trace, tokens=trace.tokens[: trace.prompt_length + 16])
        job = long if random.random() < 0.2 else short
        world.agenda.at(at_s, lambda job=job: _ignore(world.open(job)))  # type: ignore[misc]
    while len(world.ended_s) < num_jobs:
        world.run(world.agenda.now + 1.0)
    return [world.ended_s[n] - opened_s for n, opened_s in world.opened_s.items()]


def _p95(values: Sequence[float]) -> float:
    return percentile(values, 0.95)


def _ignore(_number: int) -> None:
    """An action brings nothing."""


# --- growth stops where it does not pay (EdgeBERT) -----------------------------------------------


def early_stop(seconds: float = 4.0) -> list[SeedRow]:
    """What nodes compute per accepted token, and what that costs in tokens."""
    plan = NodePlan(NodeCosts(0.006, 0.0004), LinkQuality(0.015))
    figures = []
    for is_on in (False, True):
        world = SmallWorld(ENGINES["a100-32b"], PlanLimits(), demo_book().at(0.7))
        for trace in demo_book().at(0.7)[:4]:
            world.add_node(plan, settings=DrafterSettings(has_early_stop=is_on))
            world.open(trace, has_nodes=True, again=True)
        world.join()
        world.run(seconds)
        levels = sum(node.num_levels for node in world.nodes) / world.num_accepted
        rows = sum(node.num_level_rows for node in world.nodes) / world.num_accepted
        figures.append((levels, rows, world.num_tokens() / seconds))
    off, on = figures
    return [
        SeedRow("early-stop/forwards", "per accepted token", off[0], on[0], on[0] / off[0], 1.0),
        SeedRow("early-stop/rows", "per accepted token", off[1], on[1], on[1] / off[1], 1.0),
        SeedRow("early-stop/tokens", "per s", off[2], on[2], on[2] / off[2], 0.98, at_least=True),
    ]


# --- a second node stands by (FusionAI) ----------------------------------------------------------


def standby(num_traces: int = 3) -> list[SeedRow]:
    """A node freezes in the middle of a session while its link stands.

    With nodes whose levels stall now and then, a second one stands by; without stalls none does,
    and the session is without drafts until the silence is noticed. Means over many drills.
    """
    drills = []
    for stall_rate in (0.0, 0.01):
        costs = NodeCosts(0.006, stall_rate=stall_rate, stall_s=0.2)
        found = [
            _freeze_drill(costs, place, at_s)
            for place in range(num_traces)
            for at_s in (6.0, 6.5, 7.0, 7.5)
        ]
        drills.append((max(gap for gap, _ in found), mean(steps for _, steps in found)))
    off, on = drills
    return [
        SeedRow("standby/gap", "steps, longest wait", off[0], on[0], on[0], 2.0),
        SeedRow("standby/undrafted", "steps without a node's rows", off[1], on[1], on[1], 2.0),
    ]


def _freeze_drill(costs: NodeCosts, place: int, at_s: float) -> tuple[float, int]:
    """(longest wait afterwards in steps, steps until a node's rows are verified again)."""
    traces = demo_book().at(0.7)
    world = SmallWorld(ENGINES["big-70b"], PlanLimits(has_ngram=False), traces)
    for _ in range(2):
        world.add_node(NodePlan(costs, LinkQuality(0.015)))
    world.join()
    world.open(traces[place], has_nodes=True, again=True)
    world.run(at_s)
    number = max(world.opened_s)
    world.frozen.add(next(node for node in world.nodes if node.desk.num_sessions).peer_id)
    num_before = len(world.source_rows[number])
    while number not in world.ended_s:
        world.run(world.agenda.now + 0.1)
    # The running step was bound before: what it brings is the frozen node's.
    rows = world.source_rows[number][num_before + 1 :]
    undrafted = next((i for i, num in enumerate(rows) if num), len(rows))
    times = [commit.at_s for commit in world.commits[number] if commit.at_s > at_s - 0.2]
    longest_s = max((after - before for before, after in pairwise(times)), default=0.0)
    steps_s = [after - before for before, after in pairwise(world.steps_s)]
    return longest_s / median(steps_s), undrafted


# --- fast nodes are taken first (SLED) -----------------------------------------------------------


def mixed_speeds(seconds: float = 4.0) -> SeedRow:
    """Tokens per second with half of the nodes slow, against a matching that cannot tell them."""
    rates = []
    for is_silent in (True, False):
        traces = demo_book().at(0.7)
        world = SmallWorld(ENGINES["a100-32b"], PlanLimits(), traces)
        for place in range(8):
            costs = SLOW if place % 2 == 0 else FAST
            plan = NodePlan(costs, LinkQuality(0.015), max_sessions=2)
            world.add_node(plan, is_silent=is_silent)
        world.join()
        for trace in traces[:6]:
            world.open(trace, has_nodes=True, again=True)
        world.run(1.0 + seconds)
        rates.append(world.num_tokens(1.0) / seconds)
    off, on = rates
    return SeedRow("mixed-speeds", "tokens/s", off, on, on / off, 1.0, at_least=True)


# --- the time of a level is known before it is run (MAPLE-Edge) ----------------------------------


def level_times(model: LanguageModel, clock: Callable[[], float] = time.perf_counter) -> SeedRow:
    """Error of predicted level times on shapes not measured, against the nearest width's time."""
    measured = benchmark(model, clock, repeats=9)
    known = measured.level_times()
    on, off = [], []
    for num_sessions, width, context in HELD_OUT:
        real_s = _level_time_s(model, clock, num_sessions, width, context)
        num_rows = num_sessions * width
        shape = LevelShape(num_rows, num_sessions, num_sessions * context)
        on.append(abs(known.predict(shape) / real_s - 1))
        off.append(abs(measured.level_time_s(width) / real_s - 1))
    return SeedRow("level-times", "median error", median(off), median(on), median(on), 0.15)


def _level_time_s(
    model: LanguageModel, clock: Callable[[], float], num_sessions: int, width: int, context: int
) -> float:
    """Median of a level that expands `width` vertices of each session."""
    vocab_size, times = model.info.vocab_size, []
    positions = np.arange(context, dtype=np.int32)
    sequences = range(1, num_sessions + 1)
    for sequence in sequences:
        model.add_sequence(sequence, SamplingParams(temperature=0), bytes(16))
        model.expand([Rows(sequence, positions % vocab_size, positions, None, 1)], 8)
    growths = [Growth(i + 1, 0, i % vocab_size, context) for i in range(width)]
    batch = [DraftCache().plan(sequence, growths) for sequence in sequences]
    for _ in range(10):
        begun_s = clock()
        model.expand(batch, 8)
        times.append(clock() - begun_s)
        for sequence in sequences:
            model.compact(sequence, (), ())
    for sequence in sequences:
        model.drop_sequence(sequence)
    return median(times[1:])


# --- all of them ---------------------------------------------------------------------------------


def simulated_rows() -> list[SeedRow]:
    """All that needs no model."""
    return [prefill_interference(), *queues(), *early_stop(), *standby(), mixed_speeds()]


def rows(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    with_model: Annotated[bool, typer.Option(help="Measure levels of the demo draft, too.")] = True,
) -> None:
    """Every idea taken from elsewhere, on against off."""
    found = simulated_rows()
    if with_model:
        from specedge_p2p.lm.loader import load_model  # torch takes seconds to load

        found.append(level_times(load_model("demo-draft", dtype="float32")))
    table = Table("idea", "off", "on", "", "value", "bound", "", box=box.SIMPLE)
    for row in found:
        sign = ">=" if row.at_least else "<="
        holds = "holds" if row.check.holds else "FAILS"
        figures = (f"{row.off:.3g}", f"{row.on:.3g}", row.unit, f"{row.ratio:.2f}")
        table.add_row(row.name, *figures, f"{sign} {row.bound:g}", holds)
    console = Console()
    console.print(str(this_machine()))
    console.print(table)
    if json_file is not None:
        content = {
            "machine": asdict(this_machine()),
            "rows": [asdict(row) for row in found],
            "checks": [asdict(row.check) for row in found],
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
