"""Which nodes are asked between two reviews.

A review looks at all nodes. A session that begins in between gets the best of those that were best
at the last review or have changed since: in a crowd, to look at ten thousand nodes for every
session would take longer than a step. For a session that only some nodes may see, that is the best
of those among them.
"""

from collections.abc import Iterable, Sequence

from coordinator.scheduler.matching import Matching
from coordinator.scheduler.needs import SessionNeed
from specedge_p2p.names import PeerId, SessionId


class Pool:
    """The nodes that may be the best for the next few sessions.

    Args:
        size: nodes kept of a review, at least 1.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._peers: dict[PeerId, None] = {}
        self._num_left = 0
        """Places until somebody outside may be better; below 0 where nobody is outside."""
        self._hopeless: frozenset[SessionId] = frozenset()
        """Sessions that the last review found no place for."""

    @property
    def peers(self) -> Sequence[PeerId]:
        return tuple(self._peers)

    def add(self, peer_id: PeerId) -> None:
        """The node has come, or may have room again."""
        self._peers[peer_id] = None

    def remove(self, peer_id: PeerId) -> None:
        """The node has left; somebody outside is the next best the sooner."""
        if peer_id in self._peers:
            del self._peers[peer_id]
            self._num_left -= self._num_left > 0

    def renew(self, with_room: Iterable[PeerId], hopeless: Iterable[SessionNeed] = ()) -> None:
        """All nodes were looked at.

        Args:
            with_room: nodes that had room after it, the best first.
            hopeless: sessions that nobody could be given to.
        """
        self._hopeless = frozenset(session.session_id for session in hopeless)
        found = list(with_room)
        self._peers = dict.fromkeys(found[: self._size])
        self._num_left = self._size if len(found) > self._size else -1

    def suffices(self, sessions: Sequence[SessionNeed], matching: Matching) -> bool:
        """Whether a matching of these sessions with the pool is as good as a review.

        A review may find a place for a session that has none: outside of the pool, or that of a
        second node.
        """
        given = {come.session_id for come in matching.assignments}
        is_served = all(
            session.volunteers == "none"
            or session.session_id in given
            or session.session_id in self._hopeless
            for session in sessions
        )
        if self._num_left < 0 or not is_served:
            return is_served
        self._num_left = max(0, self._num_left - len(matching.assignments))
        return self._num_left > 0
