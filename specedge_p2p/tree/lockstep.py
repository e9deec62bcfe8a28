"""Lock-step rounds at a node: grow, propose once, wait for the verdict.

This is the form of SpecEdge (arXiv 2505.17052, section 3), kept beside continuous drafting so that
the two can be measured against each other. Every round is one tree: it begins at the last committed
token, so that whoever verifies can see which verdict its node knew. Proactive drafting is growth
that goes on while the verdict travels and is not sent; what of it lies below the new root counts as
grown already.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LockstepTerms:
    """How a node drafts in lock-step.

    Args:
        levels: how many are grown below the root before the proposal.
        vertices: most vertices of a proposal, best first; 0 for all.
        is_proactive: whether the tree grows while the verdict is awaited.
    """

    levels: int
    vertices: int = 0
    is_proactive: bool = True


class LockstepRounds:
    """One session's rounds: when it may grow, and when it has to propose."""

    def __init__(self, terms: LockstepTerms) -> None:
        self.terms = terms
        self._num_grown = 0
        self._num_rounds = 0
        self._is_stuck = False
        self._is_sent = False
        self._was_late = False

    @property
    def may_propose(self) -> bool:
        """The round's proposal is due: its levels are grown, or no more can be."""
        return not self._is_sent and (self._num_grown >= self._num_levels or self._is_stuck)

    @property
    def may_grow(self) -> bool:
        return self.terms.is_proactive or not (self._is_sent or self.may_propose)

    def room(self, room: int) -> int:
        """How many of `room` vertices the proposal may have now; 0 while none is due."""
        if not self.may_propose:
            return 0
        return min(room, self.terms.vertices) if self.terms.vertices else room

    def grown(self) -> None:
        """A level grew the tree."""
        self._num_grown += 1

    def stuck(self) -> None:
        """Nothing can be grown before the next verdict."""
        self._is_stuck = True

    def proposed(self) -> None:
        self._is_sent = True

    def again(self) -> None:
        """What was proposed is lost: the same round needs a proposal once more."""
        self._is_sent = False

    def begin(self, num_levels: int) -> None:
        """A verdict moved the root; below the new one `num_levels` levels exist already.

        Where it overtook the proposal of the round before, nobody waits for this node at the moment
        and full rounds would be overtaken again: one level makes the next proposal, which says that
        the node is there.
        """
        self._was_late = self._num_rounds > 0 and not self._is_sent
        self._num_rounds += 1
        self._num_grown = num_levels
        self._is_stuck = self._is_sent = False

    @property
    def _num_levels(self) -> int:
        return 1 if self._was_late else self.terms.levels
