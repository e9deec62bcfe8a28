"""A session as matching sees it: who drafts for it, who may, and whether they are heard."""

import math
from dataclasses import dataclass

from coordinator.gateway.ports import Volunteers
from coordinator.scheduler.places import NodeOffer
from specedge_p2p.names import PeerId, SessionId

SETTLED_S = 3.0
"""A node is judged by its session after so long."""
PATIENCE_S = 2.0
"""A node that has proposed nothing for so long after its session began is not counted on."""


@dataclass(frozen=True, slots=True)
class Drafter:
    """A node that drafts for a session now.

    Args:
        peer_id: its id.
        age_s: time since the session was opened there.
        has_proposed: it has sent a tree.
        is_late: it owes an answer for longer than its levels and its link explain.
    """

    peer_id: PeerId
    age_s: float = SETTLED_S
    has_proposed: bool = True
    is_late: bool = False

    @property
    def is_unheard(self) -> bool:
        """Nothing came of it when something was due."""
        return self.is_late or (not self.has_proposed and self.age_s >= PATIENCE_S)


@dataclass(frozen=True, slots=True)
class SessionNeed:
    """A live session as matching sees it.

    Args:
        session_id: its id.
        volunteers: who may draft for it.
        drafters: who does now; those that have left count for nothing.
        released_by: nodes that gave it back; it never returns to them.
        since_dismissal_s: time since a node of it was sent away. Another one would have to read all
            of its text, so none is added for its opinion alone soon after.
    """

    session_id: SessionId
    volunteers: Volunteers
    drafters: tuple[Drafter, ...] = ()
    released_by: frozenset[PeerId] = frozenset()
    since_dismissal_s: float = math.inf


def may_draft(session: SessionNeed, node: NodeOffer) -> bool:
    """Whether the session may be shown to the node, whatever room there is."""
    if node.peer_id in session.released_by:
        return False
    if session.volunteers == "any":
        return True
    return session.volunteers == "allowed" and node.is_allowed
