"""Places at nodes, found by what a session gains there, without comparing all pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heappop, heappush, nsmallest

from coordinator.gateway.ports import Volunteers
from specedge_p2p.gain import predicted_gain
from specedge_p2p.names import PeerId

UNKNOWN_ROUND_TRIP_S = 0.1
"""Believed of a node before its link was measured."""
TYPICAL_ACCEPTANCE = 0.7
"""Of first guesses; how much better or worse a node's are is in its skill."""
SHARED_LEVEL = 0.08
"""Each further session lengthens a node's levels, or narrows them, by so much of a level alone, if
the node has not measured it."""
CROWDED = 0.3
"""By so much a node must be better for each session that it has already, to be preferred to one
without: what is known of equal machines differs by chance."""
MAX_LOOKS = 16
"""Nodes with room that one search turns down before it gives up."""


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """A connected node.

    Args:
        peer_id: its id.
        max_sessions: how many sessions it takes; 0 takes no new ones.
        round_trip_s: None before it was measured.
        is_allowed: it stands on the host's list.
        num_sessions: how many it has now.
        level_time_s: one of its levels with one session.
        level_session_time_s: what each further session adds to a level; 0 where nobody measured it.
        draft: number of its draft model.
        skill: what it brings, as a share of what is predicted of a typical draft model.
        stall_share: share of its levels that stalled.
        rest_s: so long it gets no session, because its guesses do not pay; 0 where they do.
        is_on_probation: it has rested and not brought enough since; it gets one session at most.
    """

    peer_id: PeerId
    max_sessions: int
    round_trip_s: float | None = None
    is_allowed: bool = False
    num_sessions: int = 0
    level_time_s: float = 0.01
    level_session_time_s: float = 0.0
    draft: int = 0
    skill: float = 1.0
    stall_share: float = 0.0
    rest_s: float = 0.0
    is_on_probation: bool = False

    @property
    def room(self) -> int:
        if self.rest_s:
            return 0
        return min(1, self.max_sessions) if self.is_on_probation else self.max_sessions


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    """An entry of the index, best first; out of date when the node's sessions have changed."""

    loss: float
    num_sessions: int
    round_trip_s: float
    peer_id: PeerId


class Places:
    """The nodes by what one more session would gain at each, kept up to date as places are taken.

    Args:
        nodes: each with the sessions that it has now.
        step_time_s: one engine step.
    """

    def __init__(self, nodes: Sequence[NodeOffer], step_time_s: float) -> None:
        self._step_time_s = step_time_s
        self._nodes = {node.peer_id: node for node in nodes}
        self._num_sessions = {node.peer_id: node.num_sessions for node in nodes}
        free = [node for node in nodes if node.num_sessions < node.room]
        self._all = [self._place(node) for node in free]
        places = zip(free, self._all, strict=True)
        self._allowed = [place for node, place in places if node.is_allowed]
        heapify(self._all)
        heapify(self._allowed)

    def __contains__(self, peer_id: PeerId) -> bool:
        return peer_id in self._nodes

    def node(self, peer_id: PeerId) -> NodeOffer:
        return self._nodes[peer_id]

    def takes_in_exchange(self, peer_id: PeerId) -> bool:
        """Whether the node takes a session in place of one that it has."""
        return self._num_sessions[peer_id] <= self._nodes[peer_id].room

    def gain(self, peer_id: PeerId) -> float:
        """Tokens a step that each session at the node gains, with as many as it has now."""
        return self._gain(self._nodes[peer_id], max(1, self._num_sessions[peer_id]))

    def marginal_gain(self, peer_id: PeerId) -> float:
        """What one more session would gain there, less what the others would lose."""
        return self._marginal_gain(self._nodes[peer_id], self._num_sessions[peer_id] + 1)

    def worth(self, peer_id: PeerId) -> float:
        """What would be lost with one of the node's sessions."""
        return self._marginal_gain(self._nodes[peer_id], max(1, self._num_sessions[peer_id]))

    def enter(self, peer_id: PeerId) -> None:
        self._change(peer_id, 1)

    def leave(self, peer_id: PeerId) -> None:
        self._change(peer_id, -1)

    def best(
        self,
        volunteers: Volunteers,
        taken: frozenset[PeerId] = frozenset(),
        *,
        not_draft: int | None = None,
    ) -> NodeOffer | None:
        """The node with room where one more session gains most; None where there is none.

        Args:
            volunteers: who may draft: "any" or "allowed".
            taken: nodes that do not come into question.
            not_draft: leave out this draft model, and look at the best few others only.
        """
        index = self._all if volunteers == "any" else self._allowed
        turned_down: list[_Place] = []
        found: NodeOffer | None = None
        while index:
            place = index[0]
            node = self._nodes[place.peer_id]
            if place.num_sessions != self._num_sessions[place.peer_id]:
                heappop(index)
                continue
            if node.peer_id not in taken and node.draft != not_draft:
                found = node
                break
            turned_down.append(heappop(index))
            if not_draft is not None and len(turned_down) >= MAX_LOOKS:
                break
        for place in turned_down:
            heappush(index, place)
        return found

    def with_room(self, count: int) -> tuple[PeerId, ...]:
        """At most so many nodes with room, the best first; some may stand there twice."""
        return tuple(place.peer_id for place in nsmallest(count, self._all))

    # --- inside ----------------------------------------------------------------------------------

    def _change(self, peer_id: PeerId, by: int) -> None:
        node = self._nodes[peer_id]
        self._num_sessions[peer_id] += by
        if self._num_sessions[peer_id] >= node.room:
            return
        place = self._place(node)
        heappush(self._all, place)
        if node.is_allowed:
            heappush(self._allowed, place)

    def _place(self, node: NodeOffer) -> _Place:
        num_sessions = self._num_sessions[node.peer_id]
        return _Place(
            loss=-self._marginal_gain(node, num_sessions + 1) / (1 + CROWDED * num_sessions),
            num_sessions=num_sessions,
            round_trip_s=UNKNOWN_ROUND_TRIP_S if node.round_trip_s is None else node.round_trip_s,
            peer_id=node.peer_id,
        )

    def _marginal_gain(self, node: NodeOffer, num_sessions: int) -> float:
        gain = partial(self._gain, node)
        before = (num_sessions - 1) * gain(num_sessions - 1) if num_sessions > 1 else 0.0
        return num_sessions * gain(num_sessions) - before

    def _gain(self, node: NodeOffer, num_sessions: int) -> float:
        level_time_s = shared_level_s(node.level_time_s, node.level_session_time_s, num_sessions)
        return node.skill * typical_gain(level_time_s, node.round_trip_s, self._step_time_s)


def shared_level_s(level_time_s: float, level_session_time_s: float, num_sessions: int) -> float:
    """A level of a node for all its sessions.

    Args:
        level_time_s: with one session.
        level_session_time_s: what each further one adds; 0 where nobody measured it.
        num_sessions: how many share the node.
    """
    more_s = level_session_time_s or SHARED_LEVEL * level_time_s
    return level_time_s + (num_sessions - 1) * more_s


def typical_gain(level_time_s: float, round_trip_s: float | None, step_time_s: float) -> float:
    """Tokens a step predicted for each session of a node, before its own record corrects it.

    Args:
        level_time_s: one of its levels, with all sessions that share it.
        round_trip_s: None before it was measured.
        step_time_s: one engine step.
    """
    known_s = UNKNOWN_ROUND_TRIP_S if round_trip_s is None else round_trip_s
    return predicted_gain(TYPICAL_ACCEPTANCE, level_time_s, known_s, step_time_s)
