"""The standing trial of what volunteers bring: on which side of it a session stands."""

from collections.abc import Callable

from coordinator.gateway.ports import Volunteers
from coordinator.leases import Leases
from coordinator.scheduler.benefit import Arm
from coordinator.scheduler.holdouts import Holdouts
from specedge_p2p.names import PeerId


class Trial:
    """Asked once for every session, when it opens.

    Only sessions that a node could take at that moment take part: where nobody is there, nobody is
    missed, and both arms are drawn from the same sessions.

    Args:
        leases: who is connected and has room.
        allowed: the host's list of nodes.
        rate: see Limits.holdout_rate.
        uniform: random numbers in [0, 1).
    """

    def __init__(
        self,
        leases: Leases,
        allowed: frozenset[PeerId],
        rate: float,
        uniform: Callable[[], float],
    ) -> None:
        self._leases, self._allowed, self._rate = leases, allowed, rate
        self._holdouts = Holdouts(rate, uniform)

    def arm(self, volunteers: Volunteers) -> Arm | None:
        """The side of the next session; None where it takes no part."""
        if not self._rate or not self._has_room(volunteers):
            return None
        return "holdout" if self._holdouts.takes_next() else "drafted"

    def _has_room(self, volunteers: Volunteers) -> bool:
        """A place that is free, or that of a node which is the second one of its session."""
        return volunteers != "none" and any(
            len(leases) < node.max_sessions or any(lease.role == "standby" for lease in leases)
            for node in self._leases.nodes
            if volunteers == "any" or node.peer_id in self._allowed
            for leases in [self._leases.of_node(node)]
        )
