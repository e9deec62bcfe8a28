"""Does it pay to have volunteers? Real processes on this machine, three modes side by side.

*plain* decodes one token per step, *n-gram* adds the engine's own guesses from the text, *nodes*
adds volunteer nodes over libp2p. All three serve the same prompts in every repeat, one after the
other, so that what else the machine does falls on all of them.
"""

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from specedge_p2p.demo.client import PROMPTS, Sampling, run_batch
from specedge_p2p.demo.processes import Network, NetworkPlan, running_network
from tests.benchmarks.figures import MODES, Cell, Mode, Row, Sample, rows_of

NUM_NODES = 2
SEED = 7
STEP_FLOORS_S = (0.0, 0.04)
ROUND_TRIPS_MS = (0.0, 15.0)
NUM_SESSIONS = (1, 8)
TEMPERATURES = (0.0, 0.7)
MORE_PROMPTS = (
    "class Queue:\n    def __init__(self):\n        self.items = []\n\n    def put(self, x):\n",
    "def binary_search(values, target):\n    low, high = 0, len(values) - 1\n    while low",
    "import argparse\n\n\ndef parse_args():\n    parser = argparse.ArgumentParser()\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run measures."""

    num_repeats: int
    num_tokens: int
    only: str = ""
    """Part of the names of the cells to run; empty: all."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two networks beside each other; the one that serves nothing costs nothing."""

    plain: Network
    full: Network

    def of(self, mode: Mode) -> Network:
        return self.plain if mode == "plain" else self.full


def all_cells(only: str = "") -> list[Cell]:
    cells = [
        Cell(floor_s, round_trip_ms, num_sessions, temperature)
        for floor_s in STEP_FLOORS_S
        for round_trip_ms in ROUND_TRIPS_MS
        for num_sessions in NUM_SESSIONS
        for temperature in TEMPERATURES
    ]
    return [cell for cell in cells if only in cell.name]


async def run(effort: Effort, say: Say) -> list[Row]:
    """All cells, grouped by what needs networks of its own."""
    cells = all_cells(effort.only)
    rows: list[Row] = []
    for floor_s, round_trip_ms in dict.fromkeys((c.step_floor_s, c.round_trip_ms) for c in cells):
        say(f"starting networks: steps of at least {floor_s:g} s, round trip {round_trip_ms:g} ms")
        async with _networks(floor_s, round_trip_ms) as pair:
            await _warm_up(pair)
            for cell in cells:
                if (cell.step_floor_s, cell.round_trip_ms) == (floor_s, round_trip_ms):
                    samples = await _measure_cell(pair, cell, effort)
                    rows += rows_of(cell, samples)
                    say(f"{cell.name}: " + ", ".join(_brief(row) for row in rows[-len(MODES) :]))
    return rows


@asynccontextmanager
async def _networks(step_floor_s: float, round_trip_ms: float) -> AsyncIterator[Pair]:
    serve = [
        *("--model", "demo-target", "--dtype", "float32", "--port", "0"),
        *("--listen", "/ip4/127.0.0.1/tcp/0", "--step-floor", str(step_floor_s)),
    ]
    join = [
        *("--draft-model", "demo-draft", "--threads", "1"),
        *("--link-delay-ms", str(round_trip_ms)),
    ]
    with tempfile.TemporaryDirectory(prefix="specedge-bench-") as folder:
        home = Path(folder)
        plain = NetworkPlan(home / "plain", 0, [*serve, "--no-ngram"])
        full = NetworkPlan(home / "full", NUM_NODES, serve, join)
        async with running_network(plain) as one, running_network(full) as two:
            yield Pair(one, two)


async def _warm_up(pair: Pair) -> None:
    for mode in MODES:
        await _serve(pair, mode, PROMPTS, Sampling(8, 0.7, SEED))


async def _measure_cell(pair: Pair, cell: Cell, effort: Effort) -> dict[Mode, list[Sample]]:
    """Every repeat serves the same prompts in all modes; one session takes another one each time.

    The modes take turns in being first.
    """
    prompts = [*PROMPTS, *MORE_PROMPTS]
    sampling = Sampling(effort.num_tokens, cell.temperature, SEED)
    samples: dict[Mode, list[Sample]] = {mode: [] for mode in MODES}
    for repeat in range(effort.num_repeats):
        first = repeat % len(prompts)
        chosen = [*prompts[first:], *prompts[:first]][: cell.num_sessions]
        turn = repeat % len(MODES)
        for mode in (*MODES[turn:], *MODES[:turn]):
            samples[mode].append(await _serve(pair, mode, chosen, sampling))
    return samples


async def _serve(pair: Pair, mode: Mode, prompts: Sequence[str], sampling: Sampling) -> Sample:
    network = pair.of(mode)
    network.check()
    gateway = network.endpoints.gateway
    before = await _counters(gateway)
    batch = await run_batch(gateway, prompts, sampling, "any" if mode == "nodes" else "none")
    after = await _counters(gateway)
    return Sample(
        num_tokens=batch.num_tokens,
        num_first_tokens=sum(1 for generation in batch.generations if generation.num_tokens),
        num_rounds=batch.num_rounds,
        num_accepted=sum(batch.num_accepted_by_node.values()),
        wall_s=batch.wall_s,
        engine_s=after["specedge_engine_seconds_total"] - before["specedge_engine_seconds_total"],
        num_node_bytes=int(
            after["specedge_node_bytes_total"] - before["specedge_node_bytes_total"]
        ),
    )


async def _counters(gateway: str) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=gateway) as client:
        text = (await client.get("/metrics")).raise_for_status().text
    lines = [line.split(" ") for line in text.splitlines() if line.startswith("specedge_")]
    return {name: float(value) for name, value, *_ in lines}


def _brief(row: Row) -> str:
    ratio = "" if row.ratio is None else f" ({row.ratio:.2f}x)"
    return f"{row.mode} {row.tokens_per_s:.0f}/s{ratio}"
