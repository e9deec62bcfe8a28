"""When to match sessions and nodes, and what matching is shown of them.

A session that has no node is looked at as soon as it opens, or as something has become free; all
sessions together are looked at in a review, four times a second, and once more in between where one
finds no place. However often nodes speak, and however many sessions find no place, no more than
that is spent on them.
"""

import math
from collections.abc import Callable, Sequence

from coordinator.lease import Lease
from coordinator.lease_book import LeaseBook
from coordinator.node_link import NodeLink
from coordinator.reputation import Reputation
from coordinator.scheduler.matching import Matching, match
from coordinator.scheduler.needs import SessionNeed
from coordinator.scheduler.places import NodeOffer
from coordinator.scheduler.pool import Pool
from coordinator.sessions import Session
from specedge_p2p.names import PeerId, SessionId

RESUME_WINDOW_S = 1.0
"""After joining, a node is not offered afresh what it may be about to resume."""
REVIEW_S = 0.25
"""Time between two looks at sessions that have a node already."""
POOL_SIZE = 256
"""Nodes that are looked at between two reviews; see scheduler/pool.py."""


class Matchmaker:
    """Asks the pure matching; whoever asked does what it says.

    Args:
        book: who drafts for what.
        reputation: what is known of the nodes.
        allowed: the host's list of nodes.
    """

    def __init__(
        self,
        book: LeaseBook,
        reputation: Reputation,
        allowed: frozenset[PeerId],
        clock: Callable[[], float],
    ) -> None:
        self._book, self._reputation = book, reputation
        self._allowed, self._clock = allowed, clock
        self._next_review_s = 0.0
        self._has_hurried = False
        self._dismissed_s: dict[SessionId, float] = {}
        """When a node of a live session was last sent away."""
        self._pool = Pool(POOL_SIZE)

    @property
    def is_review_due(self) -> bool:
        return self._clock() >= self._next_review_s

    @property
    def may_hurry(self) -> bool:
        """Whether a review may be held before it is due: at most one between any two."""
        return not self._has_hurried

    def begin_review(self) -> None:
        self._has_hurried = not self.is_review_due
        if not self._has_hurried:
            self._next_review_s = self._clock() + REVIEW_S

    def came(self, node: NodeLink) -> None:
        """The node has come, or may have room again."""
        self._pool.add(node.peer_id)

    def left(self, node: NodeLink) -> None:
        self._pool.remove(node.peer_id)

    def dismissed(self, session: Session) -> None:
        """A node of the session was sent away."""
        self._dismissed_s[session.session_id] = self._clock()

    def ended(self, session: Session) -> None:
        self._dismissed_s.pop(session.session_id, None)

    def match_new(self, sessions: Sequence[Session]) -> tuple[Matching, bool]:
        """What changes for sessions without a node, and whether a review would find no more.

        A review may find better nodes outside of the pool, or the second node of another session.
        """
        needs = self._needs(sessions)
        offers = [self._offer(self._book.nodes[peer_id]) for peer_id in self._pool.peers]
        matching = match(needs, offers, self._reputation.step_time_s)
        return matching, self._pool.suffices(needs, matching)

    def match_all(self, sessions: Sequence[Session]) -> Matching:
        """What changes for all sessions, all nodes looked at."""
        needs = self._needs(sessions)
        offers = [self._offer(node) for node in self._book.nodes.values()]
        matching = match(needs, offers, self._reputation.step_time_s, POOL_SIZE + 1)
        self._pool.renew(matching.with_room, _without_node(needs, matching))
        return matching

    # --- inside ----------------------------------------------------------------------------------

    def _needs(self, sessions: Sequence[Session]) -> list[SessionNeed]:
        now_s = self._clock()
        return [self._need(session, now_s) for session in sessions]

    def _need(self, session: Session, now_s: float) -> SessionNeed:
        leases = self._book.of_session(session)
        return SessionNeed(
            session_id=session.session_id,
            volunteers=session.request.volunteers,
            drafters=tuple(
                self._reputation.drafter(lease, self._book.num_sessions(lease.peer_id), now_s)
                for lease in leases
                if lease.node is not None
            ),
            released_by=frozenset(
                lease.peer_id
                for lease in leases
                if lease.is_released or self._may_be_resumed(lease, now_s)
            ),
            since_dismissal_s=now_s - self._dismissed_s.get(session.session_id, -math.inf),
        )

    def _may_be_resumed(self, lease: Lease, now_s: float) -> bool:
        node = self._book.nodes.get(lease.peer_id)
        is_back = node is not None and node.connected_s > now_s - RESUME_WINDOW_S
        return lease.node is None and is_back

    def _offer(self, node: NodeLink) -> NodeOffer:
        is_allowed = node.peer_id in self._allowed
        num_sessions = self._book.num_sessions(node.peer_id)
        return self._reputation.offer(node, num_sessions, self._clock(), is_allowed=is_allowed)


def _without_node(needs: Sequence[SessionNeed], matching: Matching) -> list[SessionNeed]:
    """Those that nobody could be given to."""
    given = {come.session_id for come in matching.assignments}
    return [need for need in needs if not need.drafters and need.session_id not in given]
