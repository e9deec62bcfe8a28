"""Which leases there are: found by id, by session and by node. `leases.py` says what they mean."""

import secrets
from collections.abc import Iterator

from coordinator.lease import Lease
from coordinator.node_link import NodeLink
from coordinator.sessions import Session
from specedge_p2p.names import LeaseId, PeerId
from specedge_p2p.wire.messages import GrowthWishes, Role


class LeaseBook:
    """Connected nodes, live sessions, and the leases that join them. It decides nothing."""

    def __init__(self) -> None:
        self.nodes: dict[PeerId, NodeLink] = {}
        """All that are connected."""
        self._leases: dict[LeaseId, Lease] = {}
        self._by_session: dict[int, list[Lease]] = {}
        self._by_node: dict[PeerId, dict[int, Lease]] = {}
        """Per connected node, by session number on its link."""
        self._next_source = 0

    def __iter__(self) -> Iterator[Lease]:
        """All leases, those of nodes that are gone too."""
        return iter(tuple(self._leases.values()))

    def remove_node(self, node: NodeLink) -> None:
        """Its leases have been detached."""
        del self.nodes[node.peer_id]
        self._by_node.pop(node.peer_id, None)

    # --- finding ---------------------------------------------------------------------------------

    def get(self, lease_id: LeaseId) -> Lease | None:
        return self._leases.get(lease_id)

    def of_node(self, node: NodeLink) -> list[Lease]:
        leases = self._by_node.get(node.peer_id, {}).values()
        return [lease for lease in leases if lease.node is node]

    def of_session(self, session: Session) -> list[Lease]:
        return list(self._by_session.get(session.number, ()))

    def active(self, session: Session) -> list[Lease]:
        """The leases of nodes that draft for the session now."""
        return [lease for lease in self.of_session(session) if lease.node is not None]

    def drafting(self, node: NodeLink, session_no: int) -> Lease | None:
        """The lease behind a session number of a link."""
        lease = self._by_node.get(node.peer_id, {}).get(session_no)
        return lease if lease is not None and lease.node is node else None

    def num_sessions(self, peer_id: PeerId) -> int:
        return len(self._by_node.get(peer_id, ()))

    # --- changing --------------------------------------------------------------------------------

    def open(self, session: Session, peer_id: PeerId, role: Role, wishes: GrowthWishes) -> Lease:
        """A new lease, not yet attached."""
        lease_id = LeaseId(secrets.token_bytes(16))
        source = self.new_source(session, peer_id)
        lease = Lease(lease_id, peer_id, session, source, role, wishes)
        self._leases[lease_id] = lease
        self._by_session.setdefault(session.number, []).append(lease)
        return lease

    def attach(self, lease: Lease, node: NodeLink, now_s: float) -> None:
        """From now on the node drafts."""
        lease.begin(node, now_s)
        self._by_node.setdefault(node.peer_id, {})[lease.session_no] = lease

    def detach(self, lease: Lease, now_s: float) -> None:
        """The node drafts no more; the lease stays."""
        self._by_node[lease.peer_id].pop(lease.session_no, None)
        lease.node, lease.lost_s = None, now_s

    def remove(self, lease: Lease) -> None:
        """A lease that has been detached."""
        del self._leases[lease.lease_id]
        self._by_session[lease.session.number].remove(lease)

    def remove_session(self, session: Session) -> list[Lease]:
        """Forget all leases of a session; returns them as they were."""
        leases = self._by_session.pop(session.number, [])
        for lease in leases:
            del self._leases[lease.lease_id]
            if lease.node is not None:
                self._by_node[lease.peer_id].pop(lease.session_no, None)
        return leases

    def new_source(self, session: Session, peer_id: PeerId) -> int:
        """The number under which the engine knows a node in a session from now on."""
        self._next_source += 1
        session.nodes_by_source[self._next_source] = peer_id
        return self._next_source
