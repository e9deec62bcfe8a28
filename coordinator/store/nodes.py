"""Nodes that the coordinator has met."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from coordinator.store.database import Database
from coordinator.store.tables import nodes
from coordinator.store.writer import Writer
from specedge_p2p.names import PeerId


@dataclass(frozen=True, slots=True)
class KnownNode:
    peer_id: PeerId
    draft_model: str
    first_seen_s: float
    last_seen_s: float


def see_node(connection: sa.Connection, peer_id: PeerId, draft_model: str, now_s: float) -> None:
    """Note that a node is here now."""
    now_ms = int(now_s * 1000)
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(
        insert(nodes)
        .values(
            peer_id=peer_id,
            draft_model=draft_model,
            first_seen_at_ms=now_ms,
            last_seen_at_ms=now_ms,
        )
        .on_conflict_do_update(
            index_elements=["peer_id"],
            set_={"draft_model": draft_model, "last_seen_at_ms": now_ms},
        )
    )


def known_nodes(connection: sa.Connection, limit: int) -> tuple[KnownNode, ...]:
    """The nodes seen last, newest first."""
    rows = connection.execute(
        nodes.select().order_by(nodes.c.last_seen_at_ms.desc(), nodes.c.peer_id).limit(limit)
    )
    return tuple(
        KnownNode(
            row.peer_id, row.draft_model, row.first_seen_at_ms / 1000, row.last_seen_at_ms / 1000
        )
        for row in rows
    )


class KnownNodes:
    """The same for tasks of the event loop."""

    def __init__(self, database: Database, writer: Writer, clock: Callable[[], float]) -> None:
        self._database, self._writer, self._clock = database, writer, clock

    async def see(self, peer_id: PeerId, draft_model: str) -> None:
        now_s = self._clock()
        await self._writer.submit(
            partial(see_node, peer_id=peer_id, draft_model=draft_model, now_s=now_s)
        )

    async def list(self, limit: int = 1000) -> tuple[KnownNode, ...]:
        return await self._database.read(partial(known_nodes, limit=limit))
