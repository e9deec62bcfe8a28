"""Which nodes draft for which session.

Every session gets one node, where that adds most; then nodes get further sessions; and where nodes
have room to spare a session gets a second one that drafts with another model, from its start, or
one that stands by because the first one stalls or is late. Breadth and depth of one node exhaust
what one draft model knows, so a second node with the same one would add nothing.

Nothing is dropped before what replaces it has been heard: a better node is opened beside the old
one, and the old one goes in a later call, when the new one has proposed. Only where neither of two
is heard, a third one takes the place of one of them at once; and where a session has none at all
and nobody has room, it takes the second one of another session. A node whose guesses do not pay
rests (`rests.py`): it is dropped whether anybody takes its place or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.scheduler.needs import PATIENCE_S, SETTLED_S, Drafter, SessionNeed, may_draft
from coordinator.scheduler.places import MAX_LOOKS, NodeOffer, Places
from specedge_p2p.names import PeerId, SessionId

MAX_DRAFTERS = 2
"""Nodes of one session at any time."""
MAX_MOVES = 4
"""Most sessions that one call begins to move to a better node: a move costs a prompt."""
MOVE_FACTOR = 1.3
MOVE_TOKENS = 0.05
"""A move must promise so many times as much, and so many tokens a step more."""
STALL_SHARE = 0.003
"""Where more of a node's levels than this stall, a second one stands by."""
SECOND_SHARE = 0.5
"""A second node must have so much of the first one's gain; half of that is enough to stay."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """From now on the node drafts for the session; `is_standby`: another does that already."""

    session_id: SessionId
    peer_id: PeerId
    is_standby: bool = False


@dataclass(frozen=True, slots=True)
class Dismissal:
    """The node drafts for the session no more, and for so long for no other."""

    session_id: SessionId
    peer_id: PeerId
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Matching:
    """What changes. Dismissals come first: they make room for the assignments.

    `with_room` are the nodes that then have room, the best first, as many as were asked for; some
    may stand there twice.
    """

    dismissals: tuple[Dismissal, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    with_room: tuple[PeerId, ...] = field(default=(), compare=False)


def match(
    sessions: Sequence[SessionNeed],
    nodes: Sequence[NodeOffer],
    step_time_s: float = 0.04,
    num_with_room: int = 0,
) -> Matching:
    """What changes; the same input always gives the same answer.

    Args:
        sessions: those to look at; nodes keep what they have of others.
        nodes: all connected nodes, with the number of sessions that each has now.
        step_time_s: one engine step.
        num_with_room: how many nodes with room to name.
    """
    return _Matcher(sessions, nodes, step_time_s).run(num_with_room)


class _Matcher:
    """One matching in the making."""

    def __init__(
        self, sessions: Sequence[SessionNeed], nodes: Sequence[NodeOffer], step_time_s: float
    ) -> None:
        self._sessions = sessions
        self._places = Places(nodes, step_time_s)
        self._present = {
            session.session_id: tuple(d for d in session.drafters if d.peer_id in self._places)
            for session in sessions
        }
        self._dismissals: list[Dismissal] = []
        self._assignments: list[Assignment] = []
        self._begun: list[tuple[SessionNeed, NodeOffer]] = []
        """Sessions that were given their first node here."""
        self._num_moves = 0
        self._seconds: list[tuple[SessionNeed, Drafter]] = []

    def run(self, num_with_room: int) -> Matching:
        for session in self._sessions:
            self._dismiss_resting(session)
        for session in self._sessions:
            self._dismiss_surplus(session)
        self._seconds = self._find_seconds()
        alone = [s for s in self._sessions if not self._present[s.session_id]]
        # Those with less choice come first, then in the order given.
        alone = [s for s in sorted(alone, key=_has_more_choice) if not self._give_first(s)]
        for session in self._sessions:
            drafters = self._present[session.session_id]
            if len(drafters) == 1 and session.volunteers != "none":
                self._give_second(session, drafters[0])
            elif len(drafters) >= MAX_DRAFTERS:
                self._replace_unheard(session)
        self._seconds.clear()
        for session in alone:  # somebody may have been sent away just now
            self._give_first(session)
        # A short answer is over before any review: its second opinion comes at once.
        for session, node in self._begun:
            self._give_other_draft(session, node)
        with_room = self._places.with_room(num_with_room)
        return Matching(tuple(self._dismissals), tuple(self._assignments), with_room)

    # --- who goes --------------------------------------------------------------------------------

    def _dismiss_resting(self, session: SessionNeed) -> None:
        for drafter in self._present[session.session_id]:
            if self._places.node(drafter.peer_id).rest_s:
                self._dismiss(session, drafter)

    def _dismiss_surplus(self, session: SessionNeed) -> None:
        drafters = self._present[session.session_id]
        if len(drafters) < MAX_DRAFTERS:
            return
        best, *others = sorted(drafters, key=self._rank)
        if best.is_late or not best.has_proposed:
            return  # nobody is heard
        for place, other in enumerate(others, 1):
            is_coming = not other.has_proposed and other.age_s < PATIENCE_S
            if place >= MAX_DRAFTERS or not (is_coming or self._is_pair(best, other)):
                self._dismiss(session, other)

    def _rank(self, drafter: Drafter) -> tuple[bool, bool, float, PeerId]:
        """The best first: heard and not late, then by what would be lost without it."""
        worth = self._places.worth(drafter.peer_id)
        return drafter.is_late, not drafter.has_proposed, -worth, drafter.peer_id

    def _is_pair(self, best: Drafter, other: Drafter) -> bool:
        """Whether two nodes of one session are worth more than one."""
        first, second = self._places.node(best.peer_id), self._places.node(other.peer_id)
        if max(first.stall_share, second.stall_share) > STALL_SHARE:
            return True
        enough = SECOND_SHARE / 2 * self._places.gain(first.peer_id)
        return first.draft != second.draft and self._places.gain(second.peer_id) >= enough

    def _dismiss(self, session: SessionNeed, drafter: Drafter) -> None:
        rest_s = self._places.node(drafter.peer_id).rest_s
        self._dismissals.append(Dismissal(session.session_id, drafter.peer_id, rest_s))
        kept = [d for d in self._present[session.session_id] if d is not drafter]
        self._present[session.session_id] = tuple(kept)
        self._places.leave(drafter.peer_id)

    # --- who comes -------------------------------------------------------------------------------

    def _give_first(self, session: SessionNeed) -> bool:
        """Whether nothing more can be done for it: it has a node, or may have none."""
        if session.volunteers == "none":
            return True
        best = self._places.best(session.volunteers, session.released_by)
        if best is None:
            best = self._take_second_of_another(session)
        if best is not None:
            self._assign(session, best, is_standby=False)
            self._begun.append((session, best))
        return best is not None

    def _take_second_of_another(self, session: SessionNeed) -> NodeOffer | None:
        """Room at a node that is the second of a session, whose first goes on alone."""
        for place, (other, second) in enumerate(self._seconds[:MAX_LOOKS]):
            node = self._places.node(second.peer_id)
            if may_draft(session, node) and self._places.takes_in_exchange(node.peer_id):
                del self._seconds[place]
                self._dismiss(other, second)
                return node
        return None

    def _find_seconds(self) -> list[tuple[SessionNeed, Drafter]]:
        """What is given up when a session has no node at all; who has done least for it first.

        A second one that was never heard is no loss, whoever else is.
        """
        seconds = []
        for session in self._sessions:
            drafters = self._present[session.session_id]
            if len(drafters) >= MAX_DRAFTERS:
                first, second = sorted(drafters, key=self._rank)[:2]
                if first.has_proposed or not second.has_proposed:
                    seconds.append((session, second))
        return sorted(seconds, key=lambda pair: (pair[1].has_proposed, pair[1].age_s))

    def _give_second(self, session: SessionNeed, drafter: Drafter) -> None:
        """A better node, a standby, or a different opinion; else nothing."""
        places = self._places
        node = places.node(drafter.peer_id)
        taken = session.released_by | {drafter.peer_id}
        needs_standby = drafter.is_unheard or node.stall_share > STALL_SHARE
        if not needs_standby and not drafter.has_proposed:
            return
        best = places.best(session.volunteers, taken)
        if best is None:
            return
        if needs_standby:
            self._assign(session, best, is_standby=True)
        elif drafter.age_s >= SETTLED_S and self._is_worth_a_move(best, node):
            if self._num_moves < MAX_MOVES:  # else its turn comes in the next review
                self._num_moves += 1
                self._assign(session, best, is_standby=True)
        elif session.since_dismissal_s >= SETTLED_S:
            self._give_other_draft(session, node)

    def _give_other_draft(self, session: SessionNeed, node: NodeOffer) -> None:
        """A node with another draft model, where one comes in time for that to add something."""
        taken = session.released_by | {node.peer_id}
        other = self._places.best(session.volunteers, taken, not_draft=node.draft)
        enough = SECOND_SHARE * self._places.gain(node.peer_id)
        if other is not None and self._places.marginal_gain(other.peer_id) >= enough:
            self._assign(session, other, is_standby=True)

    def _is_worth_a_move(self, to: NodeOffer, node: NodeOffer) -> bool:
        least = MOVE_FACTOR * self._places.worth(node.peer_id) + MOVE_TOKENS
        return self._places.marginal_gain(to.peer_id) > least

    def _replace_unheard(self, session: SessionNeed) -> None:
        """Where nobody is heard, somebody else gets the place of who is least likely to come."""
        drafters = self._present[session.session_id]
        if session.volunteers == "none" or not all(drafter.is_unheard for drafter in drafters):
            return
        taken = session.released_by.union(drafter.peer_id for drafter in drafters)
        best = self._places.best(session.volunteers, taken)
        if best is not None:
            self._dismiss(session, max(drafters, key=self._least_likely))
            self._assign(session, best, is_standby=True)

    def _least_likely(self, drafter: Drafter) -> tuple[bool, float, PeerId]:
        """Who has never proposed comes after who has; then what would be lost without it counts."""
        return not drafter.has_proposed, -self._places.worth(drafter.peer_id), drafter.peer_id

    def _assign(self, session: SessionNeed, node: NodeOffer, *, is_standby: bool) -> None:
        self._assignments.append(Assignment(session.session_id, node.peer_id, is_standby))
        self._places.enter(node.peer_id)


def _has_more_choice(session: SessionNeed) -> tuple[bool, int]:
    return session.volunteers == "any", -len(session.released_by)
