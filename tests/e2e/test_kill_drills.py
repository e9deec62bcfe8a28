"""Processes die or freeze while four sessions stream; no client sees another token.

The longest gap that a client saw is printed, and written as JSON to $SPECEDGE_DRILL_REPORT.
"""

import json
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from node.receipts import ReceiptBook
from specedge_p2p.demo.client import PROMPTS, Batch, GatewayError, Sampling
from specedge_p2p.identity.receipt import ReceiptBody
from specedge_p2p.names import PeerId
from tests.support.network import (
    Coordinator,
    Node,
    Site,
    Watch,
    free_port,
    generate,
    guessers,
    running_site,
    token_ids,
    until,
)
from tests.support.programs import is_there

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.alone]

SAMPLING = Sampling(max_tokens=160, temperature=0.7, seed=7)
STEP_FLOOR = ("--step-floor", "0.04")
ACT_AFTER_TOKENS = 24


class Report:
    """Longest gap per drill, in seconds."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._gaps_s: dict[str, float] = {}

    def add(self, drill: str, watch: Watch) -> None:
        self._gaps_s[drill] = round(watch.longest_gap_s, 3)
        print(f"{drill}: longest gap {watch.longest_gap_s:.3f} s")
        if self._path is not None:
            self._path.write_text(json.dumps(self._gaps_s, indent=2) + "\n")


class Network:
    """A coordinator with two nodes, and what it says when nobody disturbs it."""

    def __init__(self, site: Site, report: Report) -> None:
        self.site, self.report = site, report
        self.nodes: list[Node] = []

    async def start(self) -> "Network":
        self.coordinator = await self.site.coordinator("drills", *STEP_FLOOR)
        self.nodes = [await self.site.node(f"node-{i}", self.coordinator) for i in (1, 2)]
        await self.coordinator.until_nodes(2)
        watch = Watch()
        self.undisturbed = await generate(self.coordinator, PROMPTS, SAMPLING, watch=watch)
        self.report.add("undisturbed", watch)
        return self

    async def drill(self, name: str, act: Callable[[], Awaitable[None]]) -> Batch:
        """Stream four sessions, act in the middle, and compare what came."""
        batch, watch = await disturbed(self.coordinator, act)
        self.report.add(name, watch)
        assert token_ids(batch) == token_ids(self.undisturbed)
        return batch


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(os.environ.get("SPECEDGE_DRILL_REPORT"))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, report: Report) -> Iterator[Network]:
    site = Site(tmp_path_factory.mktemp("drills"))
    try:
        yield trio.run(Network(site, report).start)
    finally:
        trio.run(site.close)


async def disturbed(
    coordinator: Coordinator, act: Callable[[], Awaitable[None]]
) -> tuple[Batch, Watch]:
    watch, batches = Watch(), []

    async def stream() -> None:
        batches.append(await generate(coordinator, PROMPTS, SAMPLING, watch=watch))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream)
        await watch.until_tokens(ACT_AFTER_TOKENS)
        await act()
    return batches[0], watch


async def test_law3_critical_path_a_frozen_node_holds_nobody_up(network: Network) -> None:
    victim = network.nodes[0]

    async def freeze() -> None:
        victim.signal(signal.SIGSTOP)

    try:
        await network.drill("SIGSTOP of a node", freeze)
        await network.coordinator.until_nodes(1, within_s=20)
    finally:
        victim.signal(signal.SIGCONT)
    await network.coordinator.until_nodes(2, within_s=30)


async def test_law2_one_owner_sessions_go_on_after_the_engine_died(network: Network) -> None:
    before = network.coordinator.engine()

    async def kill() -> None:
        before.send_signal(signal.SIGKILL)

    batch = await network.drill("kill -9 of the engine", kill)
    assert network.coordinator.engine().pid != before.pid
    assert await network.coordinator.metric("specedge_engine_restarts_total") == 1
    assert await network.coordinator.num_nodes() == 2
    late = [by for g in batch.generations for by in g.guessed_by[ACT_AFTER_TOKENS * 2 :]]
    assert set(late) & {node.peer_id for node in network.nodes}, "no node draws on after a respawn"


async def test_law2_one_owner_sessions_go_on_after_a_node_died(network: Network) -> None:
    victim = network.nodes[1]

    async def kill() -> None:
        victim.signal(signal.SIGKILL)
        await victim.child.process.wait()

    await network.drill("kill -9 of a node", kill)
    await network.coordinator.until_nodes(1, within_s=20)


async def test_law5_receipt_and_streams_outlive_a_killed_coordinator(
    tmp_path: Path, report: Report
) -> None:
    async with running_site(tmp_path) as site:
        ports = ("--port", str(free_port()), "--listen", f"/ip4/127.0.0.1/tcp/{free_port()}")
        doomed = await site.coordinator("doomed", *STEP_FLOOR, *ports)
        surviving = await site.coordinator("surviving", *STEP_FLOOR)
        nodes = [await site.node(f"of-doomed-{i}", doomed) for i in (1, 2)]
        other = await site.node("of-surviving", surviving)
        await doomed.until_nodes(2)
        await surviving.until_nodes(1)
        undisturbed = await generate(surviving, PROMPTS, SAMPLING, volunteers="none")

        broken = 0

        async def stream_from_doomed(watch: Watch) -> None:
            nonlocal broken
            try:
                await generate(doomed, PROMPTS[:2], SAMPLING, watch=watch)
            except* (httpx.HTTPError, GatewayError):
                broken += 1

        async def kill() -> None:
            watch = Watch()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream_from_doomed, watch)
                await watch.until_tokens(SAMPLING.max_tokens // 2)
                await until(lambda: hold_receipts(nodes), "receipts at the nodes", within_s=20)
                engine = doomed.engine()
                doomed.signal(signal.SIGKILL)
                await doomed.child.process.wait()
                left_s = await until(has_left(engine), "the engine leaves with its coordinator", 10)
                print(f"the engine left {left_s:.1f} s after its coordinator")

        batch, watch = await disturbed(surviving, kill)
        report.add("kill -9 of the other coordinator", watch)
        assert broken == 1
        assert token_ids(batch) == token_ids(undisturbed)
        assert guessers([batch]) & {other.peer_id}

        restarted = await site.start_again(doomed)
        assert restarted.endpoints.peer_id == doomed.endpoints.peer_id
        back_s = await restarted.until_nodes(2, within_s=60)
        print(f"nodes back {back_s:.1f} s after the restarted coordinator was ready")
        again = await generate(restarted, PROMPTS, SAMPLING)
        assert token_ids(again) == token_ids(undisturbed)
        assert guessers([again]) & {node.peer_id for node in nodes}
        for node in (*nodes, other):
            node.signal(signal.SIGINT)
            await node.child.process.wait()
        await assert_books_agree(restarted, nodes)
        await assert_books_agree(surviving, [other])


def has_left(process: psutil.Process) -> Callable[[], Awaitable[bool]]:
    async def gone() -> bool:
        return not is_there(process)

    return gone


async def hold_receipts(nodes: list[Node]) -> bool:
    return any(receipts_of(node) for node in nodes)


def receipts_of(node: Node) -> list[ReceiptBody]:
    """All receipts in a node's book, each checked again."""
    path = node.home / "receipts.sqlite3"
    if not path.exists():
        return []
    book = ReceiptBook(path, PeerId(node.peer_id))
    try:
        assert book.audit() == ()
        return list(book.list(100_000))
    finally:
        book.close()


async def assert_books_agree(coordinator: Coordinator, nodes: list[Node]) -> None:
    """Every receipt of the nodes is in the ledger to the last byte, and the ledger is sound."""
    held = {envelope for node in nodes for envelope in envelopes(node.home / "receipts.sqlite3")}
    assert held
    assert held <= set(envelopes(Path(coordinator.endpoints.database)))
    summary = await coordinator.ledger_summary()
    assert summary["sum"] == 0
    accepted = summary["accepted_by_node"]
    assert isinstance(accepted, dict)
    for node in nodes:
        owed = sum(receipt.num_accepted for receipt in receipts_of(node))
        assert owed <= accepted.get(node.peer_id, 0)
    await coordinator.ledger("verify")


def envelopes(database: Path) -> list[bytes]:
    """Ledger and book both have a table of receipts with their signed envelopes."""
    with sqlite3.connect(database) as connection:
        return [bytes(row[0]) for row in connection.execute("SELECT envelope FROM receipts")]
