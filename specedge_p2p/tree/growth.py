"""How a node's tree grows: best first, wide, without ever waiting for a verdict."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from specedge_p2p.tree.draft_tree import Candidates, DraftTree

LAST_TREE_INDEX = 65_000
"""A tree that has sent this index is full; the next one begins."""

_LEAST_EDGE_LOG_PROB = -100.0
"""What is less likely counts as this, so that sums stay finite."""


@dataclass(frozen=True, slots=True)
class GrowthSettings:
    """How wide and how far a session's tree grows.

    Args:
        beam_width: frontier vertices expanded per level.
        branch_width: children kept per vertex.
        min_prob: path probability below which a vertex is neither sent nor expanded.
        look_ahead: most levels below the root.
        max_unverified: most live vertices sent.
        max_local: most vertices kept here; the improbable ones may fill half of it.
    """

    beam_width: int = 16
    branch_width: int = 8
    min_prob: float = 0.003
    look_ahead: int = 24
    max_unverified: int = 256
    max_local: int = 1024


@dataclass(frozen=True, slots=True)
class Gain:
    """What one proposal says; parents and indices are tree indices of tree `tree_no`."""

    tree_no: int
    first_index: int
    base_position: int
    candidates: Candidates


class GrowingTree:
    """One session's local tree: what was sent, and more.

    Vertices have local ids, which are never used twice. A tree on the wire is what was sent of it
    since the last time the committed tokens left what was sent.

    Args:
        num_committed: how many tokens are committed; the position after the root.
        root_token: the last of them.
        settings: see GrowthSettings.
        max_position: no token stands at or beyond this absolute position.
    """

    def __init__(
        self,
        num_committed: int,
        root_token: int,
        settings: GrowthSettings,
        max_position: int | None = None,
    ) -> None:
        self.settings = settings
        self.num_committed = num_committed
        self._max_position = max_position
        self._tree = DraftTree(root_token)
        self._next_id = 1
        self._expanded: set[int] = set()
        self._frontier: list[tuple[float, int]] = []
        self._unsent: list[tuple[float, int]] = []
        self._num_verdicts = 0
        self._num_sent = 0
        self._tree_no = 0
        self._next_index = 2  # as if something had been sent before: numbers begin with 1
        self._indices: dict[int, int] = {}
        self._begin_tree()
        self._refill_frontier()

    # --- what there is ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """Local vertices below the root."""
        return len(self._tree)

    def __contains__(self, vertex: object) -> bool:
        return vertex in self._tree

    @property
    def root(self) -> int:
        return self._tree.root

    @property
    def tree_no(self) -> int:
        """Number of the tree on the wire that the next gain belongs to."""
        return self._tree_no

    @property
    def base_position(self) -> int:
        """Position after the vertex at which that tree starts."""
        return self._base_position

    @property
    def num_unverified(self) -> int:
        """Vertices sent and still alive."""
        return sum(vertex != self.root for vertex in self._indices)

    def path_log_prob(self, vertex: int) -> float:
        """Log probability of the way from the root down to `vertex`."""
        return self._tree.path_log_prob(vertex)

    def depth(self, vertex: int) -> int:
        """Levels below the root."""
        return self._tree.depth(vertex) - self._tree.depth(self.root)

    @property
    def num_levels(self) -> int:
        """Levels below the root that hold a vertex."""
        return max((self.depth(vertex) for vertex in self._tree), default=0)

    def token_id(self, vertex: int) -> int:
        return self._tree.token_id(vertex)

    def parent(self, vertex: int) -> int:
        return self._tree.parent(vertex)

    def position(self, vertex: int) -> int:
        """Absolute position of the vertex's token."""
        return self.num_committed - 1 + self.depth(vertex)

    def path(self, vertex: int) -> list[int]:
        """Vertices below the root down to `vertex`."""
        return self._tree.path(vertex)

    def is_expanded(self, vertex: int) -> bool:
        return vertex in self._expanded

    def is_sent(self, vertex: int) -> bool:
        """Whether the tree on the wire has the vertex; its root counts as sent."""
        return vertex in self._indices

    def walk(self, token_ids: Sequence[int]) -> list[int]:
        """The vertices below the root that `token_ids` match, as far as they do."""
        matched = []
        at = self.root
        for token_id in token_ids:
            child = self._tree.child(at, token_id)
            if child is None:
                break
            matched.append(child)
            at = child
        return matched

    # --- growth ----------------------------------------------------------------------------------

    def frontier(self, beam_width: int | None = None) -> tuple[int, ...]:
        """The vertices to expand next, most probable first."""
        width = self.settings.beam_width if beam_width is None else beam_width
        if len(self._tree) >= self.settings.max_local:
            return ()
        least = self._least_log_prob()
        found: list[tuple[float, int]] = []
        while self._frontier and len(found) < width:
            entry = heapq.heappop(self._frontier)
            if entry[1] in self._expanded or not self._may_expand(entry[1]):
                continue
            if self.path_log_prob(entry[1]) < least:
                heapq.heappush(self._frontier, entry)
                break
            found.append(entry)
        for entry in found:  # they stay in the frontier until they are expanded
            heapq.heappush(self._frontier, entry)
        return tuple(vertex for _, vertex in found)

    def expand(
        self,
        vertices: Sequence[int],
        token_ids: npt.NDArray[np.int32],
        log_probs: npt.NDArray[np.float32],
    ) -> None:
        """Hang children below vertices; those that a verdict took away meanwhile are skipped.

        Args:
            vertices: n local vertices.
            token_ids: int32 [n, k], different ones in each row, best first.
            log_probs: float32 [n, k], natural log P(token | vertex).
        """
        rows = zip(vertices, token_ids.tolist(), log_probs.tolist(), strict=True)
        for vertex, row_tokens, row_log_probs in rows:
            if vertex not in self._tree or vertex in self._expanded:
                continue
            self._expanded.add(vertex)
            above = self.path_log_prob(vertex)
            children = zip(row_tokens, row_log_probs, strict=True)
            for token_id, log_prob in children:
                edge = min(0.0, max(_LEAST_EDGE_LOG_PROB, log_prob))
                if self._has_room(above + edge):
                    self._add(vertex, token_id, edge)

    # --- the wire --------------------------------------------------------------------------------

    def take_gain(self, limit: int) -> Gain | None:
        """What to send next, at most `limit` vertices; what is returned counts as sent.

        Never more than the protocol allows: see the limits in `wire/link_machine.py`.
        """
        if self._next_index > LAST_TREE_INDEX:
            self._begin_tree()
        settings = self.settings
        allowed = min(
            limit,
            settings.max_unverified - self.num_unverified,
            settings.max_unverified * (self._num_verdicts + self._tree_no) - self._num_sent,
            LAST_TREE_INDEX + 1 - self._next_index,
        )
        taken = self._pop_unsent(allowed)
        if not taken:
            return None
        first_index = self._next_index
        for index, vertex in enumerate(taken, first_index):
            self._indices[vertex] = index
        self._next_index += len(taken)
        self._num_sent += len(taken)
        tree, indices = self._tree, self._indices
        candidates = Candidates(
            np.array([tree.token_id(vertex) for vertex in taken], dtype=np.int32),
            np.array([indices[tree.parent(vertex)] for vertex in taken], dtype=np.int32),
            np.array([tree.log_prob(vertex) for vertex in taken], dtype=np.float32),
        )
        return Gain(self._tree_no, first_index, self._base_position, candidates)

    def commit(self, token_ids: Sequence[int]) -> bool:
        """Follow one verdict; call it once for each. True when the tree had its tokens.

        If they lie in what was sent, the tree on the wire goes on; otherwise a new one begins at
        the new root and everything alive counts as unsent.
        """
        self._num_verdicts += 1
        if not token_ids:
            return True
        self.num_committed += len(token_ids)
        matched = self.walk(token_ids)
        is_hit = len(matched) == len(token_ids)
        if is_hit:
            self._tree.reroot(matched[-1])
        else:
            self._tree = DraftTree(token_ids[-1], root_index=self._next_id)
            self._next_id += 1
        tree = self._tree
        self._expanded = {vertex for vertex in self._expanded if vertex in tree}
        self._indices = {v: index for v, index in self._indices.items() if v in tree}
        if tree.root in self._indices:
            self._refill_unsent()
        else:
            self._begin_tree()
        self._refill_frontier()
        return is_hit

    def restart(self) -> None:
        """The other side has lost the tree on the wire: begin the next one at the root."""
        self._begin_tree()

    def resume(self) -> None:
        """A new link: tree numbers and the protocol's counts begin anew, the tree is kept."""
        self._num_verdicts = self._num_sent = self._tree_no = 0
        self._next_index = 2
        self._begin_tree()

    def tune(self, min_prob: float, look_ahead: int, max_unverified: int) -> None:
        """Take over changed growth wishes; max_unverified only ever rises."""
        self.settings = replace(
            self.settings,
            min_prob=min_prob,
            look_ahead=look_ahead,
            max_unverified=max(max_unverified, self.settings.max_unverified),
        )
        self._refill_frontier()

    # --- inside ----------------------------------------------------------------------------------

    def _begin_tree(self) -> None:
        if self._next_index > 1:  # a tree begins on the wire with its first vertex, not before
            self._tree_no += 1
        self._next_index = 1
        self._base_position = self.num_committed
        self._indices = {self._tree.root: 0}
        self._refill_unsent()

    def _add(self, parent: int, token_id: int, log_prob: float) -> None:
        vertex = self._next_id
        self._next_id += 1
        self._tree.add(vertex, parent, token_id, log_prob)
        entry = (-self._tree.vertex(vertex).total, vertex)
        heapq.heappush(self._frontier, entry)
        heapq.heappush(self._unsent, entry)

    def _has_room(self, path_log_prob: float) -> bool:
        """Improbable vertices are kept for what a verdict may make of them, but only so many."""
        share = 1 if path_log_prob >= self._least_log_prob() else 2
        return len(self._tree) < self.settings.max_local // share

    def _may_expand(self, vertex: int) -> bool:
        if self.depth(vertex) >= self.settings.look_ahead:
            return False
        return self._max_position is None or self.position(vertex) + 1 < self._max_position

    def _least_log_prob(self) -> float:
        least = self.settings.min_prob
        return math.log(least) if least > 0 else -math.inf

    def _pop_unsent(self, limit: int) -> list[int]:
        """Most probable first; a parent is no less probable and older, so it comes first."""
        least = self._least_log_prob()
        taken: list[int] = []
        while self._unsent and len(taken) < limit:
            vertex = self._unsent[0][1]
            if self.path_log_prob(vertex) < least:
                break
            heapq.heappop(self._unsent)
            taken.append(vertex)
        return taken

    def _refill_unsent(self) -> None:
        tree = self._tree
        self._unsent = [(-tree.vertex(v).total, v) for v in tree if v not in self._indices]
        heapq.heapify(self._unsent)

    def _refill_frontier(self) -> None:
        tree = self._tree
        live = [tree.root, *tree]
        self._frontier = [(-tree.vertex(v).total, v) for v in live if v not in self._expanded]
        heapq.heapify(self._frontier)
