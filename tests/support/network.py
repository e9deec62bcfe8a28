"""Real processes on loopback: coordinators with their engines, nodes, and their clients."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import trio

from specedge_p2p.demo.client import Batch, Sampling, run_batch
from specedge_p2p.demo.processes import Child, Endpoints, read_endpoints, spawn, stop
from specedge_p2p.identity.keys import Identity
from tests.support.prestarted import spawn_prestarted

START_S = 120.0
"""Longest wait for a process on a busy machine; torch alone takes seconds to import."""
POLL_S = 0.05


async def until(
    condition: Callable[[], Awaitable[bool]], what: str, within_s: float = START_S
) -> float:
    """Poll until true; returns how long it took. The one way in which tests here wait."""
    started_s = trio.current_time()
    with trio.move_on_after(within_s):
        while not await condition():  # noqa: ASYNC110 - seen from outside
            await trio.sleep(POLL_S)
        return trio.current_time() - started_s
    raise AssertionError(f"not within {within_s:g} s: {what}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(slots=True)
class Node:
    """A volunteer process."""

    home: Path
    child: Child

    @property
    def peer_id(self) -> str:
        return Identity.load(self.home / "identity.pem").peer_id

    def signal(self, number: signal.Signals) -> None:
        self.child.process.send_signal(number)

    def log(self) -> str:
        return self.child.log_path.read_text("utf-8", "replace")


@dataclass(slots=True)
class Coordinator:
    """A coordinator process; it may be killed and started again on the same home and ports."""

    home: Path
    arguments: tuple[str, ...]
    child: Child
    endpoints: Endpoints

    @property
    def gateway(self) -> str:
        return self.endpoints.gateway

    @property
    def address(self) -> str:
        return self.endpoints.addresses[0]

    def log(self) -> str:
        return self.child.log_path.read_text("utf-8", "replace")

    def signal(self, number: signal.Signals) -> None:
        self.child.process.send_signal(number)

    def engine(self) -> psutil.Process:
        """The engine's process. Raises AssertionError when there is none."""
        for process in psutil.Process(self.child.process.pid).children():
            if "coordinator.engine.process" in process.cmdline():
                return process
        raise AssertionError("the coordinator has no engine process")

    async def health(self) -> dict[str, object]:
        async with httpx.AsyncClient(base_url=self.gateway, timeout=10) as client:
            health: dict[str, object] = (await client.get("/healthz")).json()
            return health

    async def metric(self, name: str) -> float:
        async with httpx.AsyncClient(base_url=self.gateway, timeout=10) as client:
            answer = (await client.get("/metrics")).raise_for_status()
        for line in answer.text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name} in {answer.text}")

    async def num_nodes(self) -> int:
        return int(str((await self.health())["num_nodes"]))

    async def until_nodes(self, count: int, within_s: float = START_S) -> float:
        async def joined() -> bool:
            return await self.num_nodes() == count

        return await until(joined, f"{count} nodes at {self.gateway}", within_s)

    async def ledger(self, *command: str) -> str:
        """Output of `specedge-coordinator ledger ...` on this coordinator's database."""
        done = await run_python(
            "coordinator.cli", "ledger", *command, "--database-url", self.endpoints.database
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def ledger_summary(self) -> dict[str, object]:
        summary: dict[str, object] = json.loads(await self.ledger("summary", "--json"))
        return summary


@dataclass(slots=True)
class Site:
    """Processes that are stopped together, whatever happens in between."""

    folder: Path
    children: list[Child] = field(default_factory=list)

    async def coordinator(self, name: str = "coordinator", *arguments: str) -> Coordinator:
        """Start one on the demo target and wait until it serves. Later arguments win."""
        defaults = (
            *("--model", "demo-target", "--dtype", "float64", "--threads", "1"),
            *("--port", "0", "--listen", "/ip4/127.0.0.1/tcp/0"),
        )
        home = self.folder / name
        return await self._serve(home, without_overridden(defaults, arguments))

    async def start_again(self, coordinator: Coordinator) -> Coordinator:
        return await self._serve(coordinator.home, coordinator.arguments)

    async def node(
        self,
        name: str,
        coordinator: Coordinator | None,
        *arguments: str,
        is_prestarted: bool = True,
    ) -> Node:
        """Start a node that is told of a coordinator; it joins in its own time.

        Not at the lowest priority: on a machine that does something else too it might never run.
        """
        home = self.folder / name
        told = () if coordinator is None else ("--coordinator", coordinator.address)
        usual = ("--home", str(home), "--threads", "1", "--priority", "normal")
        command = ["node.cli", "join", *usual, *told, *arguments]
        if not is_prestarted:
            return Node(home, await self.spawn(name, command))
        self.children.append(spawn_prestarted(name, command, self._log_path(name)))
        return Node(home, self.children[-1])

    async def spawn(self, name: str, command: Sequence[str], pass_fds: Sequence[int] = ()) -> Child:
        """Start any Python module that ends well on SIGINT."""
        child = await spawn(name, command, self._log_path(name), pass_fds)
        self.children.append(child)
        return child

    async def close(self) -> None:
        """Stop everything that still runs; nothing of it may survive, and all must end well."""
        family = [process for child in self.children for process in descendants(child)]
        running = [child for child in self.children if child.process.poll() is None]
        for child in running:
            child.process.send_signal(signal.SIGCONT)
        with trio.CancelScope(shield=True):
            await stop(running[::-1])
        _, alive = await trio.to_thread.run_sync(lambda: psutil.wait_procs(family, timeout=10))
        for process in alive:
            process.kill()
        codes = {child.name: child.process.returncode for child in running}
        assert set(codes.values()) <= {0}, f"{codes}, logs in {self.folder}"
        assert not alive, f"left behind: {alive}"

    def _log_path(self, name: str) -> Path:
        return self.folder / f"{name}-{len(self.children)}.log"

    async def _serve(self, home: Path, arguments: tuple[str, ...]) -> Coordinator:
        read_fd, write_fd = os.pipe()
        async with trio.lowlevel.FdStream(read_fd) as ready:
            own = ["--ready-fd", str(write_fd), "--home", str(home)]
            command = ["coordinator.cli", "serve", *own, *arguments]
            child = await self.spawn(home.name, command, (write_fd,))
            os.close(write_fd)
            endpoints = await read_endpoints(child, ready)
        return Coordinator(home, arguments, child, endpoints)


@asynccontextmanager
async def running_site(folder: Path) -> AsyncIterator[Site]:
    site = Site(folder)
    try:
        yield site
    finally:
        with trio.CancelScope(shield=True):
            await site.close()


def descendants(child: Child) -> list[psutil.Process]:
    """Of a running child, so that it can be seen later whether they are gone."""
    try:
        return psutil.Process(child.process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def without_overridden(defaults: Sequence[str], arguments: Sequence[str]) -> tuple[str, ...]:
    pairs = zip(defaults[::2], defaults[1::2], strict=True)
    kept = [part for pair in pairs if pair[0] not in arguments for part in pair]
    return (*kept, *arguments)


# --- clients -------------------------------------------------------------------------------------


class Watch:
    """What the clients of one batch saw: when tokens came, and how long they waited for them."""

    def __init__(self) -> None:
        self.longest_gap_s = 0.0
        self._seen: dict[int, tuple[int, float]] = {}
        self._fewest = 0
        self._changed = trio.Event()

    def __call__(self, batch: Batch) -> None:
        now_s = trio.current_time()
        for i, generation in enumerate(batch.generations):
            count, at_s = self._seen.get(i, (0, now_s))
            if generation.num_tokens > count:
                if count:
                    self.longest_gap_s = max(self.longest_gap_s, now_s - at_s)
                self._seen[i] = (generation.num_tokens, now_s)
        self._fewest = min(generation.num_tokens for generation in batch.generations)
        self._changed.set()
        self._changed = trio.Event()

    async def until_tokens(self, count: int, within_s: float = START_S) -> None:
        """Wait until every stream has brought so many tokens."""
        with trio.fail_after(within_s):
            while self._fewest < count:
                await self._changed.wait()


async def generate(
    coordinator: Coordinator,
    prompts: Sequence[str],
    sampling: Sampling,
    volunteers: str = "any",
    watch: Watch | None = None,
) -> Batch:
    """Stream all prompts at once."""
    on_change = watch if watch is not None else Watch()
    with trio.fail_after(2 * START_S):
        return await run_batch(coordinator.gateway, prompts, sampling, volunteers, on_change)


def token_ids(batch: Batch) -> list[list[int]]:
    return [generation.token_ids for generation in batch.generations]


def guessers(batches: Iterable[Batch]) -> set[str]:
    generations = (generation for batch in batches for generation in batch.generations)
    return {name for generation in generations for name in generation.guessed_by}


# --- commands ------------------------------------------------------------------------------------


async def run_python(
    module: str, *arguments: str, within_s: float = START_S
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m module ...` to its end."""
    with trio.fail_after(within_s):
        done = await trio.run_process(
            [sys.executable, "-m", module, *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )
