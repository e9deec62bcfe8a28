"""Nodes that were met are remembered."""

from itertools import count

from coordinator.store.database import Database
from coordinator.store.nodes import KnownNode, KnownNodes
from coordinator.store.writer import Writer
from tests.support.ledgers import node


async def test_nodes_are_remembered(database: Database, writer: Writer) -> None:
    times = count(10)
    nodes = KnownNodes(database, writer, lambda: next(times))
    assert await nodes.list() == ()
    await nodes.see(node(1), "small")
    await nodes.see(node(2), "small")
    await nodes.see(node(1), "large")
    assert await nodes.list() == (
        KnownNode(node(1), "large", 10, 12),
        KnownNode(node(2), "small", 11, 11),
    )
    assert len(await nodes.list(limit=1)) == 1
