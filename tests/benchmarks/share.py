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
from tests.benchmarks.gap import measure_gap
from tests.benchmarks.machine import this_machine
from tests.benchmarks.pipeline import Effort, workload_of
from tests.benchmarks.recorded_swarm import SwarmPlan, TaskMeter, in_virtual_time
from tests.benchmarks.recorded_swarm import running as running_recorded
from tests.benchmarks.servings import NetworkSpec, NodeGroup
from tests.benchmarks.share_figures import (
    NUM_SESSIONS,
    ShareRow,
    checks_of,
    line_of,
    lines,
    unstretched,
)
from tests.benchmarks.table import check_lines
from tests.simulator.profiles import ENGINES
from tests.simulator.traces import demo_book
from tests.simulator.world import NodePlan

DEVICE = "h200-14b"
NUM_NODES = 4
NUM_LIVE = 256
NUM_JOBS = 32
WARM_UP_STEPS, WINDOW_STEPS = 50, 10
PARTS = {
    "plan": "coordinator.rounds.Rounds._plan_steps",
    "commit": "coordinator.rounds.Rounds._take_results",
    "verdicts": "coordinator.node_link.NodeLink.write_frames",
    "links": "specedge_p2p.overlay.guard.run_guarded",
    "streams": "tests.benchmarks.recorded_swarm.RecordedSwarm.keep_busy.<locals>.client",
}
"""Tasks of the coordinator by what they do; the links' task takes proposals in."""


def share(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    sessions: Annotated[
        str, typer.Option(help="Loads of the real process, as in 8,24,48.")
    ] = "8,24",
    stretches: Annotated[
        str, typer.Option(help="Of the real nodes' and engine's time: a small and a large one.")
    ] = "8,24",
    repeats: Annotated[int, typer.Option(min=1, help="Runs at each stretch.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps in virtual time.")] = 200,
) -> None:
    """What the coordinator itself costs, as a share of an engine step."""
    loads = [int(load) for load in sessions.split(",") if load]
    look_for_cycles_rarely()  # as the processes that are measured here do
    rows = measure_tasks(NUM_SESSIONS, steps)
    gap = measure_gap(Size(NUM_SESSIONS, NUM_LIVE), steps)
    small, large = (float(stretch) for stretch in stretches.split(","))
    for load in loads:
        for _ in range(repeats):
            short = trio.run(measure_process, load, small, _say)
            long = trio.run(measure_process, load, large, _say)
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
    say(f"  {line_of(row)}, {num_steps} steps")
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
