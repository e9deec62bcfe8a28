"""What the coordinator knows of its nodes: by what they brought, never by what they claim.

Kept by peer, so that a node that comes back is known. Only the level time in Hello is a claim, and
what the node then brings corrects it.
"""

from coordinator.engine.messages import EntryResult, SourceFactor
from coordinator.lease import Lease
from coordinator.node_link import NodeLink
from coordinator.scheduler.factors import Factors
from coordinator.scheduler.needs import PATIENCE_S, Drafter
from coordinator.scheduler.places import NodeOffer, shared_level_s, typical_gain
from coordinator.scheduler.rests import Rests
from coordinator.scheduler.standing import DraftStandings, Standings
from specedge_p2p.names import PeerId

STALL_S, STALL_LEVELS = 0.1, 8
"""An answer that takes longer than the link explains by this much, or so many levels, stalled."""
LATE_S, LATE_LEVELS = 0.3, 20
"""A node that has not answered for so long is late."""
SLOW_STEP_LEVELS = 15
"""A step that lasts so many levels of a node gives its trees time to grow large."""
STEP_MEMORY = 0.98


class Reputation:
    """Scores of nodes and draft models, and the time of an engine step they are weighed against."""

    def __init__(self, factors: Factors, step_time_s: float = 0.04) -> None:
        self._factors = factors
        self._standings: Standings[PeerId] = Standings()
        self._draft_standings = DraftStandings()
        """Of all nodes with the same draft model: the belief in one that is new."""
        self._rests: Rests[PeerId] = Rests()
        self.step_time_s = step_time_s

    def observe_step(self, step_time_s: float) -> None:
        """An engine step took so long; one that prefilled much counts for little."""
        bounded_s = min(step_time_s, 4 * self.step_time_s)
        self.step_time_s += (1 - STEP_MEMORY) * (bounded_s - self.step_time_s)

    def observe_round(
        self, lease: Lease, result: EntryResult, num_sessions: int, now_s: float
    ) -> None:
        """What a node brought to a step of its session, while it had so many sessions."""
        node = lease.node
        is_expected = lease.has_proposed or now_s > lease.opened_s + lease.patience_s
        if node is None or not is_expected:
            return
        fingerprint = node.hello.model_fingerprint
        seen = next((each for each in result.seen if each.source == lease.source), None)
        if seen is not None:
            self._factors.observe(node.peer_id, fingerprint, seen.predicted, is_hit=seen.is_hit)
        num_accepted = sum(lease.source in (token.source, token.second) for token in result.sources)
        level_time_s = _level_time_s(node, num_sessions)
        predicted = typical_gain(level_time_s, node.round_trip_s, self.step_time_s)
        self._standings.observe_round(node.peer_id, num_accepted, predicted)
        self._draft_standings.observe_round(fingerprint, node.peer_id, num_accepted, predicted)
        is_first = result.from_position == lease.session.prompt_length
        lease.has_lived |= seen is not None and not is_first
        is_due = lease.has_lived or now_s > lease.due_s + (node.round_trip_s or 0.0)
        if is_due and not is_first:
            # What the engine had by itself is no merit of a node that had it too, and no fault of
            # one that had not.
            others = [by for by in result.sources if not (by.ngram or by.own)]
            num_own = sum(lease.source in (by.source, by.second) for by in others)
            num_by_nodes = sum(by.source > 0 for by in others)
            self._rests.observe(node.peer_id, num_own, num_by_nodes, len(others), now_s)

    def observe_answer(self, lease: Lease, num_sessions: int, now_s: float) -> None:
        """A proposal came of a node that has so many sessions."""
        allowed_s = _answer_s(lease, num_sessions, STALL_S, STALL_LEVELS)
        is_stalled = _owes_for_longer(lease, now_s, allowed_s)
        self._standings.observe_level(lease.peer_id, is_stalled=is_stalled)
        lease.owes_since_s = None

    def drafter(self, lease: Lease, num_sessions: int, now_s: float) -> Drafter:
        """The node of a lease, which has so many sessions, as matching sees it."""
        allowed_s = _answer_s(lease, num_sessions, LATE_S, LATE_LEVELS)
        return Drafter(
            peer_id=lease.peer_id,
            # Of the time that counts: a long prompt has to be read first.
            age_s=now_s - lease.opened_s - (lease.patience_s - PATIENCE_S),
            has_proposed=lease.has_proposed,
            is_late=_owes_for_longer(lease, now_s, allowed_s),
        )

    def source(self, lease: Lease, node: NodeLink) -> SourceFactor:
        """What the engine shall believe of the node's probabilities."""
        return self._factors.source(lease.source, lease.peer_id, node.hello.model_fingerprint)

    def rest_s(self, peer_id: PeerId, now_s: float) -> float:
        """For how long the node still rests, because its guesses do not pay; 0 where they do."""
        return self._rests.rest_s(peer_id, now_s)

    def offer(
        self, node: NodeLink, num_sessions: int, now_s: float, *, is_allowed: bool = False
    ) -> NodeOffer:
        """The node as matching sees it."""
        key, fingerprint = node.peer_id, node.hello.model_fingerprint
        believed = self._draft_standings.skill(fingerprint, self._standings.common)
        return NodeOffer(
            peer_id=key,
            max_sessions=node.max_sessions,
            round_trip_s=node.round_trip_s,
            is_allowed=is_allowed,
            num_sessions=num_sessions,
            level_time_s=node.level_time_s,
            level_session_time_s=node.level_session_time_s,
            draft=self._factors.draft(fingerprint),
            skill=self._standings.skill(key, believed),
            stall_share=self._standings.stall_share(key),
            rest_s=self.rest_s(key, now_s),
            is_on_probation=self._rests.is_on_probation(key),
        )

    def has_time_to_grow(self, node: NodeLink) -> bool:
        """Whether steps last so long that the node's trees can become large."""
        return 0.0 < SLOW_STEP_LEVELS * node.level_time_s <= self.step_time_s


def _level_time_s(node: NodeLink, num_sessions: int) -> float:
    return shared_level_s(node.level_time_s, node.level_session_time_s, num_sessions)


def _answer_s(lease: Lease, num_sessions: int, least_s: float, num_levels: int) -> float:
    """The time that link and levels explain."""
    if lease.node is None:
        return least_s
    levels_s = num_levels * _level_time_s(lease.node, num_sessions)
    return max(least_s, levels_s) + (lease.node.round_trip_s or 0.0)


def _owes_for_longer(lease: Lease, now_s: float, allowed_s: float) -> bool:
    """Whether the oldest verdict without a proposal is older than that."""
    if lease.node is None or lease.owes_since_s is None:
        return False
    return now_s - lease.owes_since_s > allowed_s
