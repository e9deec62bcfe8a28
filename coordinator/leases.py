"""Which node drafts for which session: leases are given, resumed after a reconnect, and ended.

Nothing here waits. What the engine must hear is left in an outbox that the rounds send along.
"""

from collections.abc import Callable

import msgspec

from coordinator.engine.messages import DropSource, SourceFactor, StepDone, ToEngine
from coordinator.lease import Lease, may_resume, opening, refusal, verdict_of
from coordinator.lease_book import LeaseBook
from coordinator.matchmaker import Matchmaker
from coordinator.node_link import NodeLink
from coordinator.reputation import Reputation
from coordinator.scheduler.factors import Factors
from coordinator.scheduler.matching import MAX_DRAFTERS, Assignment, Dismissal, Matching
from coordinator.scheduler.rests import LEAST_SHARE
from coordinator.sessions import Committed, Session, Sessions
from specedge_p2p.names import LeaseId, PeerId
from specedge_p2p.wire.build import split_verdict
from specedge_p2p.wire.messages import Capacity, Close, GrowthWishes, Proposal, Resume, Role, Tune

Clock = Callable[[], float]

MANY_UNVERIFIED = 512
"""Live vertices allowed where a step takes so long that a tree can grow to that size."""
OTHER_DRAFTS = "another node drafts for it"
DOES_NOT_PAY = f"nodes had guessed fewer than {LEAST_SHARE:.0%} of what was left"
"""What a node is told when its session goes on without it."""


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
        self._clock = clock
        self._lease_s = lease_s
        self._wishes = wishes
        self._book = LeaseBook()
        self._matchmaker = Matchmaker(self._book, self._reputation, allowed, clock)
        self.num_bytes_received = 0
        """In frames of all nodes since the start."""
        self.max_context = 0
        """Of the target model; set when the engine is ready."""
        self.engine_outbox: list[ToEngine] = []

    @property
    def nodes(self) -> tuple[NodeLink, ...]:
        return tuple(self._book.nodes.values())

    @property
    def step_time_s(self) -> float:
        """One engine step, lately."""
        return self._reputation.step_time_s

    def of_node(self, node: NodeLink) -> list[Lease]:
        return self._book.of_node(node)

    def of_session(self, session: Session) -> list[Lease]:
        return self._book.of_session(session)

    def sources(self, session: Session) -> list[SourceFactor]:
        """What the engine may take rows from in a session."""
        return [
            self._reputation.source(lease, lease.node)
            for lease in self._book.of_session(session)
            if lease.node is not None
        ]

    def rest_s(self, peer_id: PeerId) -> float:
        """For how long a node still gets no session, because its guesses do not pay."""
        return self._reputation.rest_s(peer_id, self._clock())

    def drafting_peers(self, session: Session) -> tuple[PeerId, ...]:
        return tuple(lease.peer_id for lease in self._book.active(session))

    # --- nodes come and go -----------------------------------------------------------------------

    def join(self, node: NodeLink) -> NodeLink | None:
        """Take a node in; returns an older link of the same peer, which must be closed."""
        older = self._book.nodes.get(node.peer_id)
        if older is not None:
            self.leave(older)
        self._book.nodes[node.peer_id] = node
        self._matchmaker.came(node)
        return older

    def leave(self, node: NodeLink) -> None:
        """A link is gone. Its leases stay for a while, so that the node may resume."""
        for lease in self.of_node(node):
            self._detach(lease)
        if self._book.nodes.get(node.peer_id) is node:
            self._book.remove_node(node)
            self._matchmaker.left(node)

    def hear_capacity(self, node: NodeLink, message: Capacity) -> None:
        """The node takes more sessions or fewer from now on; what it has goes on."""
        node.hear_capacity(message)
        if self._book.nodes.get(node.peer_id) is node:
            self._matchmaker.came(node)

    def resume(self, node: NodeLink, message: Resume) -> None:
        """Answer a Resume: go on under a new session number, or refuse with a code."""
        lease = self._book.get(LeaseId(message.lease_id))
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
        num_sessions = len(self.of_node(node))
        room = self._reputation.offer(node, num_sessions, self._clock()).room
        if num_sessions >= room:
            node.post(refusal(message, "full", f"the node may have {room} sessions"))
            return
        lease.role = "standby" if peers else "active"
        lease.source = self._book.new_source(lease.session, node.peer_id)
        self._begin(lease, node, position)
        missed = lease.session.token_ids[position:]
        for verdict in split_verdict(verdict_of(lease, position, [], 0), missed):
            node.post_verdict(verdict)

    def release(self, node: NodeLink, session_no: int) -> None:
        """The node does not want a session any more; it is not offered it again."""
        lease = self._book.drafting(node, session_no)
        if lease is not None:
            lease.is_released = True
            node.forget(session_no)
            self._detach(lease)

    # --- sessions come and go --------------------------------------------------------------------

    def rematch(self) -> None:
        """Something has come or become free: give it to sessions without a node.

        All sessions are looked at in a review; see matchmaker.py.
        """
        is_due = self._matchmaker.is_review_due
        live = [s for s in self._sessions if s.is_live and s.request.volunteers != "none"]
        if is_due or (not self._match_new(live) and self._matchmaker.may_hurry):
            self._matchmaker.begin_review()
            self._expire()
            if live:
                self._apply(self._matchmaker.match_all(live), live)

    def _match_new(self, live: list[Session]) -> bool:
        """Whether a review would find no more for those without a node."""
        sessions = [session for session in live if not self._book.active(session)]
        if not sessions:
            return True
        matching, suffices = self._matchmaker.match_new(sessions)
        self._apply(matching, sessions)
        return suffices

    def _apply(self, matching: Matching, sessions: list[Session]) -> None:
        by_id = {session.session_id: session for session in sessions}
        for gone in matching.dismissals:
            self._dismiss(by_id[gone.session_id], gone)
        for come in matching.assignments:
            self._open(by_id[come.session_id], come)

    def review(self) -> None:
        """Look at all sessions when it is time; between two reviews this costs nothing.

        It is for what nodes cause as often as they like.
        """
        if self._matchmaker.is_review_due:
            self.rematch()

    def close(self, session: Session, reason: str) -> None:
        """End all leases of a session."""
        self._matchmaker.ended(session)
        for lease in self._book.remove_session(session):
            if lease.node is not None:
                self._matchmaker.came(lease.node)
                lease.node.post(Close(lease.session_no, reason))

    # --- rounds ----------------------------------------------------------------------------------

    def accept(self, node: NodeLink, proposal: Proposal) -> Lease | None:
        """The lease that a proposal belongs to; None when it comes too late."""
        node.num_drafted += len(proposal.parents) // 2
        lease = self._book.drafting(node, proposal.session_no)
        if lease is None:
            return None
        num_sessions = self._book.num_sessions(node.peer_id)
        self._reputation.observe_answer(lease, num_sessions, self._clock())
        lease.tree_no = max(lease.tree_no, proposal.tree_no)
        if lease.proposed_s is None:
            lease.proposed_s = self._clock()
        return lease if proposal.tree_no > lease.ended_tree_no else None

    def publish(self, session: Session, committed: Committed) -> None:
        """Tell the nodes of a session what was committed."""
        for lease in self._book.active(session):
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
                for lease in self._book.active(session):
                    num_sessions = self._book.num_sessions(lease.peer_id)
                    self._reputation.observe_round(lease, result, num_sessions, self._clock())
        self._retune()
        self.review()

    def calibrate(self, step_time_s: float, max_context: int) -> None:
        """An engine is there; so long takes a step with one row."""
        self._reputation.step_time_s = max(step_time_s, 1e-4)
        self.max_context = max_context
        self._retune()

    def restart_trees(self) -> None:
        """The engine lost all trees: every node starts a new one in each of its sessions."""
        for lease in self._book:
            lease.ended_tree_no = lease.tree_no
            lease.restart()
            if lease.node is not None and lease.tree_no:
                end = len(lease.session.token_ids)
                lease.node.post_verdict(verdict_of(lease, end, [], 0, lease.tree_no))

    # --- inside ----------------------------------------------------------------------------------

    def _retune(self) -> None:
        """Let trees grow larger where a step is long for their node."""
        for lease in self._book:
            if lease.node is not None and self._allow_more(lease, lease.node):
                lease.node.post(Tune(lease.session_no, lease.wishes))

    def _allow_more(self, lease: Lease, node: NodeLink) -> bool:
        """Whether the node's trees may be larger from now on; that is never taken back."""
        is_many = lease.wishes.max_unverified >= MANY_UNVERIFIED
        if is_many or not self._reputation.has_time_to_grow(node):
            return False
        lease.wishes = msgspec.structs.replace(lease.wishes, max_unverified=MANY_UNVERIFIED)
        return True

    def _open(self, session: Session, come: Assignment) -> None:
        role: Role = "standby" if come.is_standby else "active"
        lease = self._book.open(session, come.peer_id, role, self._wishes)
        self._begin(lease, self._book.nodes[come.peer_id])

    def _begin(self, lease: Lease, node: NodeLink, resumed_at: int | None = None) -> None:
        """The node drafts from now on, and is told where."""
        self._book.attach(lease, node, self._clock())
        self._allow_more(lease, node)
        node.post(*opening(lease, self.max_context, resumed_at))

    def _dismiss(self, session: Session, gone: Dismissal) -> None:
        """End the lease of one node; the session goes on with others."""
        self._matchmaker.dismissed(session)
        reason = DOES_NOT_PAY if gone.rest_s else OTHER_DRAFTS
        for lease in self._book.active(session):
            if lease.peer_id == gone.peer_id and lease.node is not None:
                node, session_no = lease.node, lease.session_no
                self._detach(lease)
                self._book.remove(lease)
                node.post(Close(session_no, reason, gone.rest_s))

    def _detach(self, lease: Lease) -> None:
        if lease.node is not None:
            self._matchmaker.came(lease.node)
            self._book.detach(lease, self._clock())
            self.engine_outbox.append(DropSource(lease.session.number, lease.source))
            for other in self._book.active(lease.session):
                other.role = "active"  # the next verdict says so

    def _expire(self) -> None:
        oldest = self._clock() - self._lease_s
        for lease in self._book:
            if lease.node is None and not lease.is_released and lease.lost_s < oldest:
                self._book.remove(lease)
