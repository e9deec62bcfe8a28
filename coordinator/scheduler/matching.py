"""Which node drafts for which session.

The first policy: one node per session. The nodes with the fewest sessions come first, then those
with the shortest round trip.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.gateway.ports import Volunteers
from specedge_p2p.names import PeerId, SessionId


@dataclass(frozen=True, slots=True)
class SessionNeed:
    """A live session as matching sees it.

    Args:
        session_id: its id.
        volunteers: who may draft for it.
        nodes: who does now; those that have left count for nothing.
        released_by: nodes that gave it back; it never returns to them.
    """

    session_id: SessionId
    volunteers: Volunteers
    nodes: frozenset[PeerId] = frozenset()
    released_by: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """A connected node.

    Args:
        peer_id: its id.
        max_sessions: how many sessions it takes; 0 takes no new ones.
        round_trip_s: None before it was measured.
        is_allowed: it stands on the host's list.
    """

    peer_id: PeerId
    max_sessions: int
    round_trip_s: float | None = None
    is_allowed: bool = False


@dataclass(frozen=True, slots=True)
class Assignment:
    """From now on the node drafts for the session."""

    session_id: SessionId
    peer_id: PeerId


def may_draft(session: SessionNeed, node: NodeOffer) -> bool:
    """Whether the session may be shown to the node, whatever room there is."""
    if node.peer_id in session.released_by:
        return False
    if session.volunteers == "any":
        return True
    return session.volunteers == "allowed" and node.is_allowed


def match(sessions: Sequence[SessionNeed], nodes: Sequence[NodeOffer]) -> tuple[Assignment, ...]:
    """New assignments only; what is assigned stays.

    Sessions with the fewest nodes to choose from come first, then in the order given.
    """
    present = {node.peer_id for node in nodes}
    num_sessions = Counter(peer for session in sessions for peer in session.nodes & present)
    alone = [session for session in sessions if not session.nodes & present]
    choices = [(session, [n for n in nodes if may_draft(session, n)]) for session in alone]
    choices.sort(key=lambda choice: len(choice[1]))
    assignments = []
    for session, candidates in choices:
        free = [n for n in candidates if num_sessions[n.peer_id] < n.max_sessions]
        if not free:
            continue
        best = min(free, key=lambda n: (num_sessions[n.peer_id], _round_trip_s(n), n.peer_id))
        num_sessions[best.peer_id] += 1
        assignments.append(Assignment(session.session_id, best.peer_id))
    return tuple(assignments)


def _round_trip_s(node: NodeOffer) -> float:
    return float("inf") if node.round_trip_s is None else node.round_trip_s
