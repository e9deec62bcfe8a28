"""Which nodes are asked between two reviews.

A review looks at all nodes. A session that begins in between gets the best of those that were best
at the last review or have changed since: in a crowd, to look at ten thousand nodes for every
session would take longer than a step.
"""

from collections.abc import Iterable, Sequence

from coordinator.scheduler.matching import Matching, SessionNeed
from specedge_p2p.names import PeerId


class Pool:
    """The nodes that may be the best for the next few sessions.

    Args:
        size: nodes kept of a review, at least 1.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._peers: dict[PeerId, None] = {}
        self._num_left = 0
        """Sessions until somebody outside may be better; below 0 where nobody is outside."""

    @property
    def peers(self) -> Sequence[PeerId]:
        return tuple(self._peers)

    def add(self, peer_id: PeerId) -> None:
        """The node has come, or may have room again."""
        self._peers[peer_id] = None

    def renew(self, with_room: Iterable[PeerId]) -> None:
        """A review was made: these had room after it, the best first."""
        found = list(with_room)
        self._peers = dict.fromkeys(found[: self._size])
        self._num_left = self._size if len(found) > self._size else -1

    def suffices(self, sessions: Sequence[SessionNeed], matching: Matching) -> bool:
        """Whether a matching of these sessions with the pool is as good as one with all nodes."""
        if self._num_left < 0:
            return True
        num_wanted = sum(session.volunteers != "none" for session in sessions)
        self._num_left = max(0, self._num_left - num_wanted)
        return self._num_left > 0 and len(matching.assignments) >= num_wanted
