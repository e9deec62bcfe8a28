"""Which node drafts for which session: leases are given, resumed after a reconnect, and ended.

Nothing here waits. What the engine must hear is left in an outbox that the rounds send along.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from coordinator.engine.messages import DropSource, SourceFactor, ToEngine
from coordinator.node_link import NodeLink
from coordinator.scheduler.matching import NodeOffer, SessionNeed, match
from coordinator.sessions import Committed, Session, Sessions
from specedge_p2p.names import LeaseId, PeerId
from specedge_p2p.wire.build import open_messages, split_verdict
from specedge_p2p.wire.columns import pack_tokens
from specedge_p2p.wire.messages import (
    Close,
    GrowthWishes,
    Open,
    Prompt,
    Proposal,
    Refuse,
    Resume,
    Verdict,
)

Clock = Callable[[], float]

RESUME_WINDOW_S = 1.0
"""After joining, a node is not offered afresh what it may be about to resume."""


@dataclass(slots=True)
class Lease:
    """A node's right to draft for one session; `node` is None while its link is lost."""

    lease_id: LeaseId
    peer_id: PeerId
    session: Session
    source: int
    node: NodeLink | None = None
    session_no: int = 0
    lost_s: float = 0.0
    tree_no: int = 0
    """The last tree that the node started on this link."""
    ended_tree_no: int = 0
    """Trees up to this one are lost with an engine; what still arrives of them is dropped."""
    is_released: bool = False


class Leases:
    """All leases of the live sessions, and the nodes that can take more."""

    def __init__(
        self,
        sessions: Sessions,
        allowed: frozenset[PeerId],
        clock: Clock,
        lease_s: float,
        wishes: GrowthWishes = GrowthWishes(),
    ) -> None:
        self._sessions = sessions
        self._allowed = allowed
        self._clock = clock
        self._lease_s = lease_s
        self._wishes = wishes
        self._nodes: dict[PeerId, NodeLink] = {}
        self._leases: dict[LeaseId, Lease] = {}
        self._by_session: dict[int, list[Lease]] = {}
        self._by_node: dict[PeerId, dict[int, Lease]] = {}
        """Per connected node, by session number on its link."""
        self._next_source = 0
        self.num_bytes_received = 0
        """In frames of all nodes since the start."""
        self.max_context = 0
        """Of the target model; set when the engine is ready."""
        self.engine_outbox: list[ToEngine] = []

    @property
    def nodes(self) -> tuple[NodeLink, ...]:
        return tuple(self._nodes.values())

    def of_node(self, node: NodeLink) -> list[Lease]:
        leases = self._by_node.get(node.peer_id, {}).values()
        return [lease for lease in leases if lease.node is node]

    def of_session(self, session: Session) -> list[Lease]:
        return list(self._by_session.get(session.number, ()))

    def sources(self, session: Session) -> list[SourceFactor]:
        """What the engine may take rows from in a session."""
        return [SourceFactor(le.source, 1.0) for le in self._active(session)]

    def drafting_peers(self, session: Session) -> tuple[PeerId, ...]:
        return tuple(lease.peer_id for lease in self._active(session))

    # --- nodes come and go -----------------------------------------------------------------------

    def join(self, node: NodeLink) -> NodeLink | None:
        """Take a node in; returns an older link of the same peer, which must be closed."""
        older = self._nodes.get(node.peer_id)
        if older is not None:
            self.leave(older)
        self._nodes[node.peer_id] = node
        return older

    def leave(self, node: NodeLink) -> None:
        """A link is gone. Its leases stay for a while, so that the node may resume."""
        for lease in self.of_node(node):
            self._detach(lease)
        if self._nodes.get(node.peer_id) is node:
            del self._nodes[node.peer_id]
            self._by_node.pop(node.peer_id, None)

    def resume(self, node: NodeLink, message: Resume) -> None:
        """Answer a Resume: go on under a new session number, or refuse with a code."""
        lease = self._leases.get(LeaseId(message.lease_id))
        if not _may_resume(lease, node):
            node.post(_refusal(message, "unknown_lease", "the session has ended"))
            return
        position, committed = message.position, len(lease.session.token_ids)
        if not lease.session.prompt_length <= position <= committed:
            node.post(_refusal(message, "bad_position", f"{committed} tokens are committed"))
            return
        if self._active(lease.session):
            node.post(_refusal(message, "taken", "somebody drafts for the session already"))
            return
        if len(self.of_node(node)) >= node.max_sessions:
            node.post(_refusal(message, "full", f"the node takes {node.max_sessions} sessions"))
            return
        self._attach(lease, node)
        lease.source = self._new_source(lease.session, node.peer_id)
        lease.tree_no = lease.ended_tree_no = 0
        node.post(*self._opening(lease, resumed_at=position))
        missed = lease.session.token_ids[position:]
        for verdict in split_verdict(_verdict(lease, position, [], 0), missed):
            node.post_verdict(verdict)

    def release(self, node: NodeLink, session_no: int) -> None:
        """The node does not want a session any more; it is not offered it again."""
        lease = self._drafting(node, session_no)
        if lease is not None:
            lease.is_released = True
            node.forget(session_no)
            self._detach(lease)

    # --- sessions come and go --------------------------------------------------------------------

    def rematch(self) -> None:
        """Give sessions without a node to nodes with room."""
        self._expire()
        live = {session.session_id: session for session in self._sessions if session.is_live}
        needs = [self._need(session) for session in live.values()]
        offers = [self._offer(node) for node in self._nodes.values()]
        for assignment in match(needs, offers):
            self._open(live[assignment.session_id], self._nodes[assignment.peer_id])

    def close(self, session: Session, reason: str) -> None:
        """End all leases of a session."""
        for lease in self._by_session.pop(session.number, ()):
            del self._leases[lease.lease_id]
            if lease.node is not None:
                self._by_node[lease.peer_id].pop(lease.session_no, None)
                lease.node.post(Close(lease.session_no, reason))

    # --- rounds ----------------------------------------------------------------------------------

    def accept(self, node: NodeLink, proposal: Proposal) -> Lease | None:
        """The lease that a proposal belongs to; None when it comes too late."""
        node.num_drafted += len(proposal.parents) // 2
        lease = self._drafting(node, proposal.session_no)
        if lease is None:
            return None
        lease.tree_no = max(lease.tree_no, proposal.tree_no)
        return lease if proposal.tree_no > lease.ended_tree_no else None

    def publish(self, session: Session, committed: Committed) -> None:
        """Tell the nodes of a session what was committed."""
        for lease in self._active(session):
            num_accepted = committed.accepted_by_source.get(lease.source, 0)
            verdict = _verdict(lease, committed.from_position, committed.token_ids, num_accepted)
            if lease.node is not None:
                lease.node.num_accepted += num_accepted
                lease.node.post_verdict(verdict)

    def restart_trees(self) -> None:
        """The engine lost all trees: every node starts a new one in each of its sessions."""
        for lease in self._leases.values():
            lease.ended_tree_no = lease.tree_no
            if lease.node is not None and lease.tree_no:
                end = len(lease.session.token_ids)
                lease.node.post_verdict(_verdict(lease, end, [], 0, lease.tree_no))

    # --- inside ----------------------------------------------------------------------------------

    def _active(self, session: Session) -> list[Lease]:
        return [lease for lease in self.of_session(session) if lease.node is not None]

    def _need(self, session: Session) -> SessionNeed:
        leases = self.of_session(session)
        return SessionNeed(
            session_id=session.session_id,
            volunteers=session.request.volunteers,
            nodes=frozenset(lease.peer_id for lease in leases if lease.node is not None),
            released_by=frozenset(
                lease.peer_id
                for lease in leases
                if lease.is_released or self._may_be_resumed(lease)
            ),
        )

    def _may_be_resumed(self, lease: Lease) -> bool:
        node = self._nodes.get(lease.peer_id)
        is_back = node is not None and node.connected_s > self._clock() - RESUME_WINDOW_S
        return lease.node is None and is_back

    def _offer(self, node: NodeLink) -> NodeOffer:
        return NodeOffer(
            peer_id=node.peer_id,
            max_sessions=node.max_sessions,
            round_trip_s=node.round_trip_s,
            is_allowed=node.peer_id in self._allowed,
        )

    def _open(self, session: Session, node: NodeLink) -> None:
        lease_id = LeaseId(secrets.token_bytes(16))
        source = self._new_source(session, node.peer_id)
        lease = Lease(lease_id, node.peer_id, session, source)
        self._attach(lease, node)
        self._leases[lease_id] = lease
        self._by_session.setdefault(session.number, []).append(lease)
        node.post(*self._opening(lease))

    def _opening(self, lease: Lease, resumed_at: int | None = None) -> Sequence[Open | Prompt]:
        session = lease.session
        sampling = session.request.sampling
        head = Open(
            session_no=lease.session_no,
            lease_id=lease.lease_id,
            num_tokens=len(session.token_ids) if resumed_at is None else resumed_at,
            noise_key=session.noise_key,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            max_position=min(self.max_context, session.prompt_length + session.max_tokens),
            role="active",
            wishes=self._wishes,
            resumed=resumed_at is not None,
        )
        return (head,) if head.resumed else open_messages(head, session.token_ids)

    def _drafting(self, node: NodeLink, session_no: int) -> Lease | None:
        lease = self._by_node.get(node.peer_id, {}).get(session_no)
        return lease if lease is not None and lease.node is node else None

    def _attach(self, lease: Lease, node: NodeLink) -> None:
        lease.node, lease.session_no = node, node.new_session_no()
        self._by_node.setdefault(node.peer_id, {})[lease.session_no] = lease

    def _detach(self, lease: Lease) -> None:
        if lease.node is not None:
            self._by_node[lease.peer_id].pop(lease.session_no, None)
            lease.node, lease.lost_s = None, self._clock()
            self.engine_outbox.append(DropSource(lease.session.number, lease.source))

    def _expire(self) -> None:
        oldest = self._clock() - self._lease_s
        for lease in list(self._leases.values()):
            if lease.node is None and not lease.is_released and lease.lost_s < oldest:
                del self._leases[lease.lease_id]
                self._by_session[lease.session.number].remove(lease)

    def _new_source(self, session: Session, peer_id: PeerId) -> int:
        self._next_source += 1
        session.nodes_by_source[self._next_source] = peer_id
        return self._next_source


def _may_resume(lease: Lease | None, node: NodeLink) -> TypeGuard[Lease]:
    if lease is None or lease.peer_id != node.peer_id or lease.is_released:
        return False
    return lease.session.is_live


def _refusal(message: Resume, code: str, text: str) -> Refuse:
    return Refuse(code, text, message.lease_id)


def _verdict(
    lease: Lease, position: int, token_ids: list[int], num_accepted: int, restart: int = 0
) -> Verdict:
    return Verdict(
        session_no=lease.session_no,
        round_no=lease.session.num_rounds,
        from_position=position,
        token_ids=pack_tokens(token_ids),
        num_accepted=num_accepted,
        restart_tree_no=restart,
    )
