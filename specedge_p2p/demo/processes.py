"""The demo's process tree: a coordinator (with its engine) and nodes, each a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import httpx
import msgspec
import trio

from specedge_p2p.errors import ClearError
from specedge_p2p.identity.keys import Identity

START_S = 180.0
"""Longest start of a process; loading torch from a cold disk takes most of it."""
STOP_S = 10.0


class DemoError(ClearError):
    """The demo network cannot go on; the text says why and where the log is."""


class Endpoints(msgspec.Struct, frozen=True):
    """What `specedge-coordinator serve --ready-fd` reports when it is ready."""

    peer_id: str
    addresses: list[str]
    gateway: str
    dashboard: str
    database: str


class Process(Protocol):
    """What is asked of a started process; `trio.Process` has it."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def send_signal(self, sig: signal.Signals) -> None: ...
    def kill(self) -> None: ...
    async def wait(self) -> int: ...


@dataclass(slots=True)
class Child:
    """A started process and its log."""

    name: str
    process: Process
    log_path: Path

    def ending(self) -> str:
        """How an ended process ended: by which signal, or with which last words."""
        code = self.process.returncode or 0
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = self.log_path.read_text("utf-8", "replace").strip().splitlines()
        return f"code {code}: {lines[-1] if lines else 'it said nothing'}"

    def check(self) -> None:
        """Raises DemoError when the process has ended."""
        if self.process.poll() is not None:
            raise DemoError(f"{self.name} ended ({self.ending()})")

    async def check_soon(self) -> None:
        """Like `check`, for one whose connections broke: its end may be seen a moment later."""
        with trio.move_on_after(1):
            await self.process.wait()
        self.check()


@dataclass(slots=True)
class Network:
    """A running coordinator and its nodes."""

    endpoints: Endpoints
    coordinator: Child
    processes: list[Child]
    """All of them, the coordinator first; they are stopped together."""
    nodes: list[Child] = field(default_factory=list)
    node_homes: list[Path] = field(default_factory=list)

    @property
    def peer_ids(self) -> tuple[str, ...]:
        """Of the nodes, in order; read from the identities that they made at their start."""
        return tuple(Identity.load(home / "identity.pem").peer_id for home in self.node_homes)

    def add(self, node: Child, home: Path) -> None:
        """A node that was started; it is stopped with the network."""
        self.processes.append(node)
        self.nodes.append(node)
        self.node_homes.append(home)

    def check(self) -> None:
        """Raises DemoError when the coordinator or a node has ended."""
        for child in (self.coordinator, *self.nodes):
            child.check()


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """What to start. `*_args` go to the commands as they are."""

    home: Path
    num_nodes: int
    coordinator_args: Sequence[str] = ()
    node_args: Sequence[str] = ()
    pass_fds: Sequence[int] = ()
    """Every process holds these open as long as it lives."""


@asynccontextmanager
async def running_network(plan: NetworkPlan) -> AsyncIterator[Network]:
    """Start everything, wait until all nodes are connected, stop everything at the end."""
    children: list[Child] = []
    try:
        network = await _start(plan, children)
        yield network
    finally:
        with trio.CancelScope(shield=True):
            await stop(children[::-1])


async def stop(children: Sequence[Child]) -> None:
    """Ask the processes to leave, in order and all at once; kill what does not."""
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGINT)
    for child in children:
        with trio.move_on_after(STOP_S):
            await child.process.wait()
        if child.process.poll() is None:
            child.process.kill()
            await child.process.wait()


async def _start(plan: NetworkPlan, children: list[Child]) -> Network:
    read_fd, write_fd = os.pipe()
    async with trio.lowlevel.FdStream(read_fd) as ready:
        arguments = ["--ready-fd", str(write_fd), "--home", str(plan.home / "coordinator")]
        child = await spawn(
            "the coordinator",
            ["coordinator.cli", "serve", *arguments, *plan.coordinator_args],
            plan.home / "coordinator.log",
            pass_fds=(write_fd, *plan.pass_fds),
        )
        children.append(child)
        os.close(write_fd)
        endpoints = await read_endpoints(child, ready)
    network = Network(endpoints, child, children)
    for i in range(plan.num_nodes):
        home = plan.home / f"node-{i + 1}"
        arguments = ["--home", str(home)]
        for address in endpoints.addresses:
            arguments += ["--coordinator", address]
        node = await spawn(
            f"node {i + 1}",
            ["node.cli", "join", *arguments, *plan.node_args],
            plan.home / f"node-{i + 1}.log",
            pass_fds=plan.pass_fds,
        )
        network.add(node, home)
    await until_joined(network, plan.num_nodes)
    return network


async def spawn(
    name: str, command: Sequence[str], log_path: Path, pass_fds: Sequence[int] = ()
) -> Child:
    """Start `python -m module ...` in a session of its own, so that Ctrl-C is ours alone.

    It ends by itself when this process is gone, whatever that died of.

    Args:
        name: for messages.
        command: the module and its arguments.
        log_path: of what it says.
        pass_fds: what it shall hold open.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log_file:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "specedge_p2p.demo.lifeline", *command],
            stdin=_lifeline(),
            stdout=log_file,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    return Child(name, process, log_path)


@cache
def _lifeline() -> int:
    """The reading end of a pipe; the other one is open as long as this process lives."""
    read_fd, _ = os.pipe()
    return read_fd


async def read_endpoints(child: Child, ready: trio.abc.ReceiveStream) -> Endpoints:
    """Wait for the one line on the ready pipe; it closes early when the process dies."""
    line = b""
    with trio.move_on_after(START_S):
        async for piece in ready:
            line += piece
    if not line:
        await child.check_soon()
        raise DemoError(f"the coordinator was not ready after {START_S:g} s: {child.log_path}")
    return msgspec.json.decode(line, type=Endpoints)


async def until_joined(network: Network, num_nodes: int) -> None:
    """Wait until so many nodes are connected. Raises DemoError when a process has ended."""
    async with httpx.AsyncClient(base_url=network.endpoints.gateway) as client:
        with trio.move_on_after(START_S):
            while True:
                network.check()
                health = json.loads((await client.get("/healthz")).text)
                if health["num_nodes"] >= num_nodes:
                    return
                await trio.sleep(0.1)
    raise DemoError(f"the nodes did not join within {START_S:g} s")
