"""Coordinators and nodes that know one address between them find each other over real libp2p."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import trio

from specedge_p2p.identity.keys import Identity
from specedge_p2p.lm.files import find_model
from specedge_p2p.overlay.discovery import KnownCoordinators, find_coordinators
from specedge_p2p.overlay.libp2p_host import open_overlay
from tests.support.network import Coordinator, Node, Site, running_site, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.alone]

FIND_S = 60.0


async def test_two_coordinators_and_three_nodes_find_each_other(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        first = await site.coordinator("first")
        second = await site.coordinator("second", "--bootstrap", first.address)
        both = {first.endpoints.peer_id, second.endpoints.peer_id}
        await assert_found_from(first.address, both, tmp_path)
        await assert_found_from(second.address, both, tmp_path)

        nodes = [await site.node(f"node-{i}", None, "--bootstrap", first.address) for i in range(3)]
        await until(lambda: have_started(nodes), "the nodes have started")
        found_s = await until(lambda: know(nodes, both), "all nodes know both", FIND_S)
        print(f"all nodes knew both coordinators {found_s:.1f} s after the last had started")
        await until(lambda: are_shared(first, second, 3), "each node joined a coordinator")
        await assert_comes_to_the_other(site, first, second, nodes)


async def assert_found_from(bootstrap: str, both: set[str], folder: Path) -> None:
    """A stranger who knows one address has both coordinators in time."""
    stranger = Identity.generate()
    known = KnownCoordinators(folder / f"known-{stranger.peer_id}.json")
    with trio.fail_after(FIND_S):
        async with open_overlay(
            stranger, listen=(), bootstrap=[bootstrap], dht="client"
        ) as overlay:
            found: set[str] = set()
            while found != both:
                everyone = await find_coordinators(overlay, known=known, now_s=time.time)
                found = {each.record.peer_id for each in everyone}


async def assert_comes_to_the_other(
    site: Site, first: Coordinator, second: Coordinator, nodes: list[Node]
) -> None:
    """Nodes reach either coordinator: when the first is gone, the second has them all."""
    first.signal(signal.SIGINT)
    await first.child.process.wait()
    await second.until_nodes(len(nodes), within_s=60)


async def have_started(nodes: list[Node]) -> bool:
    return all("this node is" in node.log() for node in nodes)


async def know(nodes: list[Node], both: set[str]) -> bool:
    return all(known_by(node) == both for node in nodes)


def known_by(node: Node) -> set[str]:
    path = node.home / "coordinators.json"
    return {known["peer_id"] for known in json.loads(path.read_text())} if path.exists() else set()


async def are_shared(first: Coordinator, second: Coordinator, count: int) -> bool:
    return await first.num_nodes() + await second.num_nodes() == count


async def test_a_node_with_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign-draft"
    shutil.copytree(find_model("demo-draft"), foreign)
    tokenizer = json.loads((foreign / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = [text for text, number in vocab.items() if number in (300, 301)]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (foreign / "tokenizer.json").write_text(json.dumps(tokenizer))
    async with running_site(tmp_path) as site:
        coordinator = await site.coordinator()
        node = await site.node("foreigner", coordinator, "--draft-model", str(foreign))
        with trio.fail_after(60):
            assert await node.child.process.wait() == 2
        said = [line for line in node.log().splitlines() if line.startswith("specedge-node:")]
        assert len(said) == 1
        assert said[0] == node.log().splitlines()[-1]
        assert "tokenizer" in said[0]
        assert "Traceback" not in node.log()
        assert await coordinator.num_nodes() == 0
