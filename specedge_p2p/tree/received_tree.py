"""A node's tree as it is seen by whoever knows the committed tokens.

The walk along the committed tokens stops at the deepest vertex that they match. What lies below it
is alive. While committed tokens lie beyond it the tree brings nothing, but the vertex that goes on
with them may still be under way, so the tree is kept.
"""

from collections.abc import Sequence
from math import inf

from specedge_p2p.tree.draft_tree import Candidates, DraftTree, TreeError, check_vertex


class ReceivedTree:
    """One tree of one node in one session, from its first proposal until it ends.

    Args:
        tree_no: its number on the link.
        base_position: absolute position after the vertex it started from.
        committed_after_root: tokens committed here from base_position on.
        root_token: the token at base_position - 1.
        max_position: no vertex may stand at or beyond this absolute position.
    """

    def __init__(
        self,
        tree_no: int,
        base_position: int,
        committed_after_root: Sequence[int],
        root_token: int,
        max_position: int | None = None,
    ) -> None:
        self.tree_no = tree_no
        self.base_position = base_position
        self.next_index = 1
        self.tree = DraftTree(root_token)
        self._beyond = list(committed_after_root)
        self._is_dead = False
        self._max_depth = inf if max_position is None else max_position - base_position

    @property
    def matched(self) -> int:
        """Index of the deepest vertex that the committed tokens match."""
        return self.tree.root

    @property
    def num_vertices(self) -> int:
        """All vertices that ever arrived."""
        return self.next_index - 1

    @property
    def num_live(self) -> int:
        """Vertices below the committed tokens; 0 while the walk falls short of them."""
        return len(self.tree)

    @property
    def is_full(self) -> bool:
        """The matched vertex is the last committed token, so the tree may bring rows."""
        return not self._beyond and not self._is_dead

    @property
    def is_dead(self) -> bool:
        """Set by `end` alone: while it lives, later vertices may complete the walk."""
        return self._is_dead

    def end(self) -> None:
        """Drop everything; what still arrives is counted and discarded."""
        self._is_dead = True
        self._beyond.clear()
        self.tree.prune_below_root()

    def extend(self, first_index: int, candidates: Candidates, arrival: int = 0) -> int:
        """Take the next vertices and go on with the walk where they allow it.

        Args:
            first_index: tree index of the first of them.
            candidates: their columns; parents are tree indices.
            arrival: the caller's counter of arrivals; the lower one earns the credit.

        Returns how many were discarded. Raises TreeError for a gap, a parent that does not stand
        before its child, a log probability above 0 or infinite, equal siblings and vertices that
        stand too far down; the tree is then of no further use.
        """
        if first_index != self.next_index:
            raise TreeError(f"index {first_index} came where {self.next_index} was due")
        self.next_index += len(candidates)
        columns = zip(
            candidates.parents.tolist(),
            candidates.token_ids.tolist(),
            candidates.log_probs.tolist(),
            strict=True,
        )
        if not self._beyond and not self._is_dead:
            return self.tree.extend(first_index, columns, arrival, self._max_depth)
        num_discarded = 0
        for index, (parent, token_id, log_prob) in enumerate(columns, first_index):
            if not self._take(index, parent, token_id, log_prob, arrival):
                num_discarded += 1
        return num_discarded

    def commit(self, token_ids: Sequence[int]) -> None:
        """Follow newly committed tokens."""
        if self._is_dead:
            return
        if self._beyond:
            self._beyond.extend(token_ids)
            return
        vertex = self.tree.root_vertex
        for num_matched, token_id in enumerate(token_ids):
            below = vertex.children.get(token_id)
            if below is None:
                self._beyond.extend(token_ids[num_matched:])
                break
            vertex = below
        self.tree.reroot(vertex.index)
        if self._beyond:
            self.tree.prune_below_root()

    def _take(self, index: int, parent: int, token_id: int, log_prob: float, arrival: int) -> bool:
        """Take one vertex while committed tokens lie beyond the walk, or nothing lives."""
        at_end_of_walk = bool(self._beyond) and parent == self.tree.root
        is_wanted = not at_end_of_walk or token_id == self._beyond[0]
        if self._is_dead or not is_wanted:
            check_vertex(index, parent, log_prob)
            return False
        column = [(parent, token_id, log_prob)]
        if self.tree.extend(index, column, arrival, self._max_depth):
            return False
        if at_end_of_walk:
            del self._beyond[0]
            self.tree.reroot(index)
        return True
