"""What the coordinator costs beside its engine: the limit that one interpreter sets.

Three measures, each per engine step of the h200-14b profile:

* *rounds*: planning, committing and building verdicts; with the whole coordinator on recorded
  models in virtual time (`recorded_swarm.py`), metered task by task, what nodes and engine do left
  out. Links and streams are metered beside it, as far as they go without sockets.
* *gap*: what the engine does between two forwards (`gap.py`), with full trees.
* *process*: the processor time of a real coordinator process with its links, encryption, decoding
  and streams to clients. Its nodes and its engine are real and stretched in time, so that one
  machine can carry all of them. What goes with steps does not stretch; what goes with seconds
  (heartbeats, the event loop's turns) does, and would count too much. So each load runs at two
  stretches, and the line through both says what an unstretched step costs.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import trio
import typer

from specedge_p2p.garbage import look_for_cycles_rarely
from tests.benchmarks.binding import Size
from tests.benchmarks.clients import LoadPlan, serve_all
from tests.benchmarks.emulated import Say, counters_of, running
from tests.benchmarks.figures import Check
from tests.benchmarks.gap import Gap, measure_gap
from tests.benchmarks.machine import this_machine
from tests.benchmarks.pipeline import Effort, workload_of
from tests.benchmarks.recorded_swarm import SwarmPlan, TaskMeter, in_virtual_time
from tests.benchmarks.recorded_swarm import running as running_recorded
from tests.benchmarks.servings import NetworkSpec, NodeGroup
from tests.benchmarks.table import check_lines
from tests.simulator.profiles import ENGINES
from tests.simulator.traces import demo_book
from tests.simulator.world import NodePlan

DEVICE = "h200-14b"
NUM_NODES = 4
NUM_SESSIONS, NUM_LIVE = 24, 256
NUM_JOBS = 32
ROUNDS_BOUND, GAP_BOUND_MS, PROCESS_BOUND = 0.10, 1.0, 0.60
WARM_UP_STEPS, WINDOW_STEPS = 50, 10
PARTS = {
    "plan": "coordinator.rounds.Rounds._plan_steps",
    "commit": "coordinator.rounds.Rounds._take_results",
    "verdicts": "coordinator.node_link.NodeLink.write_frames",
    "links": "specedge_p2p.overlay.guard.run_guarded",
    "streams": "tests.benchmarks.recorded_swarm.RecordedSwarm.keep_busy.<locals>.client",
}
"""Tasks of the coordinator by what they do; the links' task takes proposals in."""
ROUNDS = ("plan", "commit", "verdicts")


@dataclass(frozen=True, slots=True)
class ShareRow:
    """One measure at one load.

    Args:
        cpu_ms: processor time per engine step.
        step_ms: the engine step's own time on the emulated device.
        num_steps: how many were measured.
        wall_ms: real time per step; 0 where time was not real.
    """

    name: str
    num_sessions: int
    cpu_ms: float
    step_ms: float
    num_steps: int
    wall_ms: float = 0.0

    @property
    def share(self) -> float:
        return self.cpu_ms / self.step_ms


def share(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    sessions: Annotated[
        str, typer.Option(help="Loads of the real process, as in 8,24,48.")
    ] = "8,24",
    stretch: Annotated[
        float,
        typer.Option(help="Of the real nodes' and engine's time; each load runs at twice it too."),
    ] = 12.0,
    repeats: Annotated[int, typer.Option(help="Runs at each stretch; medians count.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps in virtual time.")] = 200,
) -> None:
    """What the coordinator itself costs, as a share of an engine step."""
    loads = [int(load) for load in sessions.split(",") if load]
    look_for_cycles_rarely()  # as the processes that are measured here do
    rows = measure_tasks(NUM_SESSIONS, steps)
    gap = measure_gap(Size(NUM_SESSIONS, NUM_LIVE), steps)
    for load in loads:
        found = [
            [trio.run(measure_process, load, times * stretch, _say) for times in (1, 2)]
            for _ in range(repeats)
        ]
        short, long = (median_row(runs) for runs in zip(*found, strict=True))
        rows += [short, long, unstretched(short, long)]
    checks = checks_of(rows, gap)
    print("\n".join([str(this_machine()), *lines(rows, gap), *check_lines(checks)]))
    if json_file is not None:
        content = {
            "machine": asdict(this_machine()),
            "rows": [*map(asdict, rows), asdict(gap)],
            "checks": [asdict(check) for check in checks],
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def measure_tasks(num_sessions: int, num_steps: int) -> list[ShareRow]:
    """Processor time of the coordinator's tasks, nothing but its own work in them.

    Medians over windows of WINDOW_STEPS steps: what else the machine does comes in bursts.
    """
    plan = SwarmPlan(ENGINES[DEVICE], (NodePlan(),) * NUM_NODES)
    meter = TaskMeter()
    windows: list[list[ShareRow]] = []

    async def run() -> None:
        async with running_recorded(plan, demo_book()) as swarm, trio.open_nursery() as nursery:
            await swarm.keep_busy(num_sessions, nursery)
            load, num_left = swarm.coordinator.load, num_steps
            await swarm.until_step(WARM_UP_STEPS)
            while num_left > 0:
                before_s, num_before = load.engine_s, load.num_steps
                meter.cpu_s.clear()
                await swarm.until_step(num_before + WINDOW_STEPS)
                num = load.num_steps - num_before
                num_left -= num
                step_ms = 1000 * (load.engine_s - before_s) / num
                windows.append(
                    [
                        ShareRow(name, num_sessions, 1000 * meter.cpu_s[task] / num, step_ms, num)
                        for name, task in PARTS.items()
                    ]
                )
            nursery.cancel_scope.cancel()

    in_virtual_time(run, meter)
    return [
        ShareRow(
            parts[0].name,
            num_sessions,
            median(row.cpu_ms for row in parts),
            median(row.step_ms for row in parts),
            sum(row.num_steps for row in parts),
        )
        for parts in zip(*windows, strict=True)
    ]


def median_row(rows: Sequence[ShareRow]) -> ShareRow:
    """The row in the middle, by processor time."""
    return sorted(rows, key=lambda row: row.cpu_ms)[len(rows) // 2]


def unstretched(short: ShareRow, long: ShareRow) -> ShareRow:
    """What a step costs the process when its real time is its own time.

    Args:
        short, long: the same load, with less and more real time per step.
    """
    more_ms = long.wall_ms - short.wall_ms
    if more_ms <= 0:
        raise ValueError(f"{long.name} took no longer than {short.name}")
    per_ms = max(0.0, (long.cpu_ms - short.cpu_ms) / more_ms)
    cpu_ms = short.cpu_ms - per_ms * (short.wall_ms - short.step_ms)
    num_steps = short.num_steps + long.num_steps
    return ShareRow("process", short.num_sessions, cpu_ms, short.step_ms, num_steps, short.step_ms)


async def measure_process(num_sessions: int, stretch: float, say: Say) -> ShareRow:
    """A real coordinator process under load, in stretched time."""
    serve = ("--engine-draft", "demo-draft", "--engine-tree", "auto")
    spec = NetworkSpec(DEVICE, stretch, serve, (NodeGroup(NUM_NODES),))
    workload = workload_of(Effort(num_jobs=max(NUM_JOBS, num_sessions)))
    plan = LoadPlan(workload.of(num_sessions), num_sessions, 0.7)
    with tempfile.TemporaryDirectory(prefix="specedge-share-") as folder:
        async with running(spec, Path(folder)) as network:
            gateway, pid = network.endpoints.gateway, network.coordinator.process.pid
            begun: list[_Moment] = []

            async def begin() -> None:
                first = await _moment(gateway, pid)
                now = first
                while now.num_steps < first.num_steps + 20:
                    await trio.sleep(0.2)
                    now = await _moment(gateway, pid)
                begun.append(now)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(begin)
                await serve_all(gateway, plan)
            ended = await _moment(gateway, pid)
    num_steps = ended.num_steps - begun[0].num_steps
    cpu_ms = 1000 * (ended.cpu_s - begun[0].cpu_s) / num_steps
    step_ms = 1000 * (ended.padded_s - begun[0].padded_s) / num_steps / stretch
    wall_ms = 1000 * (ended.at_s - begun[0].at_s) / num_steps
    name = f"process, stretched {stretch:g} times"
    row = ShareRow(name, num_sessions, cpu_ms, step_ms, num_steps, wall_ms)
    say(f"  {_line(row)}, {num_steps} steps")
    return row


@dataclass(frozen=True, slots=True)
class _Moment:
    at_s: float
    num_steps: int
    padded_s: float
    cpu_s: float


async def _moment(gateway: str, pid: int) -> _Moment:
    counters = await counters_of(gateway)
    return _Moment(
        trio.current_time(),
        int(counters.get("specedge_engine_steps_total", 0)),
        counters.get("specedge_padded_seconds_total", 0.0),
        process_cpu_s(pid),
    )


def process_cpu_s(pid: int) -> float:
    """Processor time of a running process so far, its children's left out."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def limit_sessions(rows: Sequence[ShareRow]) -> float:
    """Where the line through the least and the greatest load says that a step is filled.

    Both the process and the step grow with the sessions; infinite where the step grows faster.
    """
    least = min(rows, key=lambda row: row.num_sessions)
    most = max(rows, key=lambda row: row.num_sessions)
    num = most.num_sessions - least.num_sessions
    if not num:
        return float("nan")
    closing = (least.step_ms - least.cpu_ms) - (most.step_ms - most.cpu_ms)
    if closing <= 0:
        return float("inf")
    return most.num_sessions + (most.step_ms - most.cpu_ms) * num / closing


def checks_of(rows: Sequence[ShareRow], gap: Gap) -> list[Check]:
    """The bounds, at NUM_SESSIONS."""
    here = [row for row in rows if row.num_sessions == NUM_SESSIONS]
    rounds = sum(row.share for row in here if row.name in ROUNDS)
    checks = [
        _at_most("share/rounds", rounds, ROUNDS_BOUND, "planning, committing, building verdicts"),
        _at_most("share/gap-ms", gap.median_ms, GAP_BOUND_MS, f"{gap.num_live:.0f} live vertices"),
    ]
    whole = [row for row in rows if row.name == "process"]
    for row in whole:
        if row.num_sessions == NUM_SESSIONS:
            limit = limit_sessions(whole)
            note = f"a step is filled at about {limit:.0f} sessions" if limit == limit else ""
            checks.append(_at_most("share/process", row.share, PROCESS_BOUND, note))
    return checks


def _at_most(name: str, value: float, bound: float, note: str) -> Check:
    return Check(name, value, bound, value <= bound, note=note)


def lines(rows: Sequence[ShareRow], gap: Gap) -> list[str]:
    """For the terminal."""
    return [
        *map(_line, rows),
        f"gap, {gap.num_sessions} sessions of {gap.num_live:.0f} live vertices: "
        f"{gap.median_ms:.2f} ms, p95 {gap.p95_ms:.2f} ms",
    ]


def _line(row: ShareRow) -> str:
    return (
        f"{row.name}, {row.num_sessions} sessions: {row.cpu_ms:.2f} ms a step of "
        f"{row.step_ms:.1f} ms, {row.share:.1%}"
    )
