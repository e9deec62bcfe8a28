"""Which node drafts for which session: leases are given, resumed after a reconnect, and ended.

Nothing here waits. What the engine must hear is left in an outbox that the rounds send along.
"""

import math
import secrets
from collections.abc import Callable, Sequence

import msgspec

from coordinator.engine.messages import DropSource, SourceFactor, StepDone, ToEngine
from coordinator.lease import Lease, may_resume, opening, refusal, verdict_of
from coordinator.node_link import NodeLink
from coordinator.reputation import SLOW_STEP_LEVELS, Reputation
from coordinator.scheduler.factors import Factors
from coordinator.scheduler.matching import MAX_DRAFTERS, Matching, SessionNeed, match
from coordinator.scheduler.places import NodeOffer
from coordinator.scheduler.pool import Pool
from coordinator.sessions import Committed, Session, Sessions
from specedge_p2p.names import LeaseId, PeerId
from specedge_p2p.wire.build import split_verdict
from specedge_p2p.wire.messages import Close, GrowthWishes, Proposal, Resume, Role, Tune

Clock = Callable[[], float]

RESUME_WINDOW_S = 1.0
"""After joining, a node is not offered afresh what it may be about to resume."""
REVIEW_S = 0.25
"""Time between two looks at sessions that have a node already."""
POOL_SIZE = 256
"""Nodes that are looked at between two reviews; see scheduler/pool.py."""
MANY_UNVERIFIED = 512
"""Live vertices allowed where a step takes so long that a tree can grow to that size."""


class Leases:
    """All leases of the live sessions, and the nodes that can take more."""

    def __init__(
        self,
        sessions: Sessions,
        allowed: frozenset[PeerId],
        clock: Clock,
        lease_s: float,
        wishes: GrowthWishes = GrowthWishes(),
        factors: Factors | None = None,
    ) -> None:
        """`factors` are shared with the plan; without them the leases keep their own."""
        self._sessions = sessions
        self._reputation = Reputation(factors or Factors())
        self._next_review_s = 0.0
        self._allowed = allowed
        self._clock = clock
        self._lease_s = lease_s
        self._wishes = wishes
        self._nodes: dict[PeerId, NodeLink] = {}
        self._leases: dict[LeaseId, Lease] = {}
        self._by_session: dict[int, list[Lease]] = {}
        self._pool = Pool(POOL_SIZE)
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

    @property
    def step_time_s(self) -> float:
        """One engine step, lately."""
        return self._reputation.step_time_s

    def of_node(self, node: NodeLink) -> list[Lease]:
        leases = self._by_node.get(node.peer_id, {}).values()
        return [lease for lease in leases if lease.node is node]

    def of_session(self, session: Session) -> list[Lease]:
        return list(self._by_session.get(session.number, ()))

    def sources(self, session: Session) -> list[SourceFactor]:
        """What the engine may take rows from in a session."""
        return [
            self._reputation.source(lease, lease.node)
            for lease in self._by_session.get(session.number, ())
            if lease.node is not None
        ]

    def drafting_peers(self, session: Session) -> tuple[PeerId, ...]:
        return tuple(lease.peer_id for lease in self._active(session))

    # --- nodes come and go -----------------------------------------------------------------------

    def join(self, node: NodeLink) -> NodeLink | None:
        """Take a node in; returns an older link of the same peer, which must be closed."""
        older = self._nodes.get(node.peer_id)
        if older is not None:
            self.leave(older)
        self._nodes[node.peer_id] = node
        self._pool.add(node.peer_id)
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
        if not may_resume(lease, node):
            node.post(refusal(message, "unknown_lease", "the session has ended"))
            return
        position, committed = message.position, len(lease.session.token_ids)
        if not lease.session.prompt_length <= position <= committed:
            node.post(refusal(message, "bad_position", f"{committed} tokens are committed"))
            return
        peers = self.drafting_peers(lease.session)
        if node.peer_id in peers or len(peers) >= MAX_DRAFTERS:
            node.post(refusal(message, "taken", "others draft for the session already"))
            return
        if len(self.of_node(node)) >= node.max_sessions:
            node.post(refusal(message, "full", f"the node takes {node.max_sessions} sessions"))
            return
        self._attach(lease, node)
        lease.role = "standby" if peers else "active"
        lease.source = self._new_source(lease.session, node.peer_id)
        node.post(*opening(lease, self._wishes, self.max_context, position))
        missed = lease.session.token_ids[position:]
        for verdict in split_verdict(verdict_of(lease, position, [], 0), missed):
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
        """Give sessions without a node to nodes with room; now and then look at all of them."""
        now_s = self._clock()
        is_review = now_s >= self._next_review_s
        if is_review:
            self._expire()
            self._next_review_s = now_s + REVIEW_S
        looked_at = {
            session.session_id: session
            for session in self._sessions
            if session.is_live and (is_review or not self._active(session))
        }
        if not looked_at:
            return
        needs = [self._need(session, now_s) for session in looked_at.values()]
        matching = self._match(needs, is_review=is_review)
        for gone in matching.dismissals:
            self._dismiss(looked_at[gone.session_id], gone.peer_id)
        for come in matching.assignments:
            role: Role = "standby" if come.is_standby else "active"
            self._open(looked_at[come.session_id], self._nodes[come.peer_id], role)

    def close(self, session: Session, reason: str) -> None:
        """End all leases of a session."""
        for lease in self._by_session.pop(session.number, ()):
            del self._leases[lease.lease_id]
            if lease.node is not None:
                self._by_node[lease.peer_id].pop(lease.session_no, None)
                self._pool.add(lease.peer_id)
                lease.node.post(Close(lease.session_no, reason))

    # --- rounds ----------------------------------------------------------------------------------

    def accept(self, node: NodeLink, proposal: Proposal) -> Lease | None:
        """The lease that a proposal belongs to; None when it comes too late."""
        node.num_drafted += len(proposal.parents) // 2
        lease = self._drafting(node, proposal.session_no)
        if lease is None:
            return None
        self._reputation.observe_answer(lease, self._clock())
        lease.tree_no = max(lease.tree_no, proposal.tree_no)
        return lease if proposal.tree_no > lease.ended_tree_no else None

    def publish(self, session: Session, committed: Committed) -> None:
        """Tell the nodes of a session what was committed."""
        for lease in self._active(session):
            num_accepted = committed.accepted_by_source.get(lease.source, 0)
            verdict = verdict_of(lease, committed.from_position, committed.token_ids, num_accepted)
            if lease.node is not None:
                lease.node.num_accepted += num_accepted
                lease.node.post_verdict(verdict)
            if lease.tree_no and lease.owes_since_s is None:
                lease.owes_since_s = self._clock()

    def learn(self, step: StepDone) -> None:
        """Judge nodes by what a step did, before its results are published."""
        self._reputation.observe_step(step.ended_s - step.started_s)
        for result in step.results:
            session = self._sessions.get(result.session)
            if session is not None and session.is_live and result.token_ids:
                for lease in self._active(session):
                    num_sessions = self._num_sessions(lease.peer_id)
                    self._reputation.observe_round(lease, result, num_sessions, self._clock())
        self._retune()
        if self._clock() >= self._next_review_s:
            self.rematch()

    def calibrate(self, step_time_s: float, max_context: int) -> None:
        """An engine is there; so long takes a step with one row."""
        self._reputation.step_time_s = max(step_time_s, 1e-4)
        self.max_context = max_context
        self._retune()

    def restart_trees(self) -> None:
        """The engine lost all trees: every node starts a new one in each of its sessions."""
        for lease in self._leases.values():
            lease.ended_tree_no = lease.tree_no
            if lease.node is not None and lease.tree_no:
                end = len(lease.session.token_ids)
                lease.node.post_verdict(verdict_of(lease, end, [], 0, lease.tree_no))

    # --- inside ----------------------------------------------------------------------------------

    def _match(self, needs: Sequence[SessionNeed], *, is_review: bool) -> Matching:
        step_time_s = self._reputation.step_time_s
        if not is_review:
            nodes = [self._nodes[peer] for peer in self._pool.peers if peer in self._nodes]
            matching = match(needs, [self._offer(node) for node in nodes], step_time_s)
            if self._pool.suffices(needs, matching):
                return matching
        offers = [self._offer(node) for node in self._nodes.values()]
        matching = match(needs, offers, step_time_s, POOL_SIZE + 1)
        self._pool.renew(matching.with_room)
        return matching

    def _active(self, session: Session) -> list[Lease]:
        return [lease for lease in self.of_session(session) if lease.node is not None]

    def _retune(self) -> None:
        """Let trees grow larger where steps are slow; an allowance is never taken back."""
        if self._wishes.max_unverified >= MANY_UNVERIFIED:
            return
        levels_s = [node.level_time_s for node in self._nodes.values()]
        if self._reputation.step_time_s < SLOW_STEP_LEVELS * min(levels_s, default=math.inf):
            return
        self._wishes = msgspec.structs.replace(self._wishes, max_unverified=MANY_UNVERIFIED)
        for lease in self._leases.values():
            if lease.node is not None:
                lease.node.post(Tune(lease.session_no, self._wishes))

    def _dismiss(self, session: Session, peer_id: PeerId) -> None:
        """End the lease of one node; the session goes on with others."""
        for lease in self._active(session):
            if lease.peer_id == peer_id and lease.node is not None:
                node, session_no = lease.node, lease.session_no
                self._detach(lease)
                del self._leases[lease.lease_id]
                self._by_session[session.number].remove(lease)
                node.post(Close(session_no, "another node drafts for it"))

    def _need(self, session: Session, now_s: float) -> SessionNeed:
        leases = self.of_session(session)
        return SessionNeed(
            session_id=session.session_id,
            volunteers=session.request.volunteers,
            drafters=tuple(
                self._reputation.drafter(lease, now_s) for lease in leases if lease.node is not None
            ),
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
        is_allowed = node.peer_id in self._allowed
        num_sessions = self._num_sessions(node.peer_id)
        return self._reputation.offer(node, num_sessions, is_allowed=is_allowed)

    def _num_sessions(self, peer_id: PeerId) -> int:
        return len(self._by_node.get(peer_id, ()))

    def _open(self, session: Session, node: NodeLink, role: Role) -> None:
        lease_id = LeaseId(secrets.token_bytes(16))
        source = self._new_source(session, node.peer_id)
        lease = Lease(lease_id, node.peer_id, session, source, role)
        self._attach(lease, node)
        self._leases[lease_id] = lease
        self._by_session.setdefault(session.number, []).append(lease)
        node.post(*opening(lease, self._wishes, self.max_context))

    def _drafting(self, node: NodeLink, session_no: int) -> Lease | None:
        lease = self._by_node.get(node.peer_id, {}).get(session_no)
        return lease if lease is not None and lease.node is node else None

    def _attach(self, lease: Lease, node: NodeLink) -> None:
        lease.begin(node, self._clock())
        self._by_node.setdefault(node.peer_id, {})[lease.session_no] = lease

    def _detach(self, lease: Lease) -> None:
        if lease.node is not None:
            self._by_node[lease.peer_id].pop(lease.session_no, None)
            self._pool.add(lease.peer_id)
            lease.node, lease.lost_s = None, self._clock()
            self.engine_outbox.append(DropSource(lease.session.number, lease.source))
            for other in self._active(lease.session):
                other.role = "active"  # the next verdict says so

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
