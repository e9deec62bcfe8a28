"""Runs servings on real processes and turns what the clients saw into figures."""

import json
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from specedge_p2p.demo.processes import Network, NetworkPlan, running_network, until_joined
from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay.libp2p_host import open_overlay
from specedge_p2p.overlay.sample import SampleError, fetch_sample
from tests.benchmarks.clients import LoadPlan, Served, Workload, serve_all
from tests.benchmarks.figures import MOST_LATE
from tests.benchmarks.servings import NetworkSpec, NodeGroup, Serving
from tests.support.prestarted import spawn_prestarted

MOST_TRIES = 2
SAMPLE_TRIES = 10
"""Each of up to a minute."""
SLOWER = 1.5
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Padding:
    """How much of the emulated devices' time the machine really needed.

    Args:
        num_forwards: padded forwards; num_late: those that ended late.
        used_s, padded_s: what they really took, and what they were padded to.
    """

    num_forwards: int = 0
    num_late: int = 0
    used_s: float = 0.0
    padded_s: float = 0.0

    @property
    def late_share(self) -> float:
        return self.num_late / max(1, self.num_forwards)

    @property
    def used_share(self) -> float:
        return self.used_s / self.padded_s if self.padded_s else 1.0

    def __add__(self, other: "Padding") -> "Padding":
        return Padding(
            self.num_forwards + other.num_forwards,
            self.num_late + other.num_late,
            self.used_s + other.used_s,
            self.padded_s + other.padded_s,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """One serving: what its clients saw, and what the processes said of themselves."""

    serving: Serving
    served: tuple[Served, ...]
    engine: Padding
    nodes: Padding
    counters: dict[str, float]
    """Growth of the coordinator's counters during the run."""
    drafts: tuple[str, ...] = ()
    """Draft models that its nodes took, by name."""


async def run(servings: Sequence[Serving], workload: Workload, say: Say) -> AsyncIterator[Measured]:
    """Measure all of them; those on the same network share its processes.

    A network whose forwards end late is slowed down and tried again.
    """
    waiting = list(dict.fromkeys(servings))
    while waiting:
        network = waiting[0].network
        together = [serving for serving in waiting if serving.network == network]
        waiting = [serving for serving in waiting if serving.network != network]
        for one in await _with_tries(together, workload, say):
            yield one


async def _with_tries(servings: Sequence[Serving], workload: Workload, say: Say) -> list[Measured]:
    """The last try is kept; if too many of its forwards were late, no check holds on it."""
    measured = await _on_one_network(servings, workload, say)
    for _ in range(MOST_TRIES - 1):
        late = max(max(m.engine.late_share, m.nodes.late_share) for m in measured)
        if late <= MOST_LATE or not servings[0].network.device:
            break
        say(f"  {late:.1%} of the padded forwards ended late: slower, once more")
        servings = [serving.stretched(SLOWER) for serving in servings]
        measured = await _on_one_network(servings, workload, say)
    return measured


async def _on_one_network(
    servings: Sequence[Serving], workload: Workload, say: Say
) -> list[Measured]:
    spec = servings[0].network
    results = []
    with tempfile.TemporaryDirectory(prefix="specedge-bench-") as folder:
        async with running(spec, Path(folder)) as network:
            for serving in servings:
                say(f"{serving.name} (stretch {spec.stretch:g})")
                results.append(await _serve(network, serving, workload))
        said = _reports(Path(folder))
    # A node tells of itself once, when it leaves.
    nodes = sum((padding for padding, _ in said), start=Padding())
    drafts = tuple(sorted({draft for _, draft in said if draft}))
    return [replace(measured, nodes=nodes, drafts=drafts) for measured in results]


async def _serve(network: Network, serving: Serving, workload: Workload) -> Measured:
    network.check()
    gateway = network.endpoints.gateway
    before = await counters_of(gateway)
    num_sessions = serving.num_sessions
    jobs = workload.of(num_sessions, serving.num_turns)
    plan = LoadPlan(jobs, num_sessions, serving.temperature)
    served = await serve_all(gateway, plan)
    after = await counters_of(gateway)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return Measured(serving, tuple(served), _engine_padding(grown), Padding(), grown)


@asynccontextmanager
async def running(spec: NetworkSpec, folder: Path) -> AsyncIterator[Network]:
    """The processes of a network, all nodes joined."""
    serve = [
        *("--model", "demo-target", "--dtype", "float32", "--port", "0", "--threads", "1"),
        *("--listen", "/ip4/127.0.0.1/tcp/0", "--holdout", "0"),
        *_emulate(spec.device, spec.stretch),
        *spec.serve,
    ]
    async with running_network(NetworkPlan(folder, 0, serve)) as network:
        if any(len(group.draft_models) > 1 for group in spec.nodes):
            await _until_sampled(network.endpoints.addresses[0])
        for number, group in enumerate(_one_by_one(spec.nodes), 1):
            home = folder / f"node-{number}"
            arguments = [
                *("--home", str(home), "--coordinator", network.endpoints.addresses[0]),
                *("--threads", "1"),
                *(part for name in group.draft_models for part in ("--draft-model", name)),
                *("--link-delay-ms", str(group.round_trip_ms)),
                *("--link-seed", str(number)),  # or all links would drop at once
                *("--report", str(folder / f"report-{number}.json")),
                *_emulate(group.profile, spec.stretch),
                *_priority(group.profile),
                *group.arguments,
            ]
            command = ["node.cli", "join", *arguments]
            log_path = folder / f"node-{number}.log"
            network.add(spawn_prestarted(f"node {number}", command, log_path), home)
        await until_joined(network, spec.num_nodes)
        yield network


async def _until_sampled(address: str) -> None:
    """Until nodes that come can choose: in stretched time they would not wait so long."""
    async with open_overlay(Identity.generate(), listen=[], bootstrap=[], dht="client") as overlay:
        for tries_left in reversed(range(SAMPLE_TRIES)):
            try:
                await fetch_sample(overlay, address)
                return
            except SampleError:
                if not tries_left:
                    raise


def _one_by_one(groups: Sequence[NodeGroup]) -> list[NodeGroup]:
    return [group for group in groups for _ in range(group.count)]


def _emulate(profile: str, stretch: float) -> list[str]:
    if not profile:
        return []
    return ["--emulate", profile, "--stretch", str(stretch)]


def _priority(profile: str) -> list[str]:
    """A node that stands for a machine of its own must not wait for others on this one."""
    return ["--priority", "normal"] if profile else []


def _engine_padding(grown: dict[str, float]) -> Padding:
    return Padding(
        int(grown.get("specedge_padded_forwards_total", 0)),
        int(grown.get("specedge_late_forwards_total", 0)),
        grown.get("specedge_padded_used_seconds_total", 0.0),
        grown.get("specedge_padded_seconds_total", 0.0),
    )


def _reports(folder: Path) -> list[tuple[Padding, str]]:
    """What each node told: its padding and its draft model."""
    told = [json.loads(path.read_text("utf-8")) for path in folder.glob("report-*.json")]
    return [
        (Padding(t["num_forwards"], t["num_late"], t["used_s"], t["padded_s"]), t["draft_model"])
        for t in told
    ]


async def counters_of(gateway: str) -> dict[str, float]:
    """All counters and gauges of a coordinator that have no labels."""
    async with httpx.AsyncClient(base_url=gateway) as client:
        text = (await client.get("/metrics")).raise_for_status().text
    lines = [line.split(" ") for line in text.splitlines() if line.startswith("specedge_")]
    return {name: float(value) for name, value, *_ in lines if "{" not in name}
