"""How a node's tree grows: best first, wide, without ever waiting for a verdict."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from specedge_p2p.tree.draft_tree import Candidates
from specedge_p2p.tree.local_tree import LocalTree, LocalVertex, Row
from specedge_p2p.tree.sent_tree import SentTree

LEAST_EDGE_LOG_PROB = -100.0
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
        max_local: most vertices kept here. Children that are too improbable to be among them stay
            in their parent's row until a verdict makes more of them.
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

    Vertices have local numbers, which are never used twice. A tree on the wire is what was sent of
    it since the last time the committed tokens left what was sent.

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
        self._tree = LocalTree(LocalVertex(0, root_token), next_number=1)
        # Heaps of (negated total, number); entries that were expanded or sent since are skipped.
        self._frontier: list[tuple[float, int]] = []
        self._offered: list[tuple[float, int]] = []  # the frontier's best, as last asked for
        self._unsent: list[tuple[float, int]] = []
        self._sent = SentTree()
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
        return self._tree.root.number

    @property
    def tree_no(self) -> int:
        """Number of the tree on the wire that the next gain belongs to."""
        return self._sent.tree_no

    @property
    def num_unverified(self) -> int:
        """Vertices sent and still alive."""
        return self._sent.num_unverified

    @property
    def num_levels(self) -> int:
        """Levels below the root that hold a vertex."""
        return max(vertex.depth for vertex in self._tree) - self._tree.root.depth

    def vertex(self, vertex: int) -> LocalVertex:
        """The vertex itself, for whoever reads several things of it. KeyError when it is dead."""
        return self._tree[vertex]

    def token_id(self, vertex: int) -> int:
        return self._tree[vertex].token_id

    def is_expanded(self, vertex: int) -> bool:
        return vertex in self._tree and self._tree[vertex].row is not None

    # --- growth ----------------------------------------------------------------------------------

    def frontier(self, beam_width: int | None = None, least_prob: float = 0.0) -> tuple[int, ...]:
        """The vertices to expand next, most probable first.

        Args:
            beam_width: most of them; None for that of the settings.
            least_prob: path probability that they need beyond what the settings ask for.
        """
        width = self.settings.beam_width if beam_width is None else beam_width
        tree = self._tree
        if len(tree) >= self.settings.max_local:
            return ()
        least = max(self._least_total(), tree.root.total + _log(least_prob))
        deepest = self._deepest()
        heap = self._frontier
        for entry in self._offered:  # they stay in the frontier until they are expanded
            if tree[entry[1]].row is None:
                heapq.heappush(heap, entry)
        found: list[tuple[float, int]] = []
        while heap and len(found) < width and -heap[0][0] >= least:
            entry = heapq.heappop(heap)
            vertex = tree[entry[1]]
            if vertex.row is None and vertex.depth < deepest:
                found.append(entry)
        self._offered = found
        return tuple(number for _, number in found)

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
        tree = self._tree
        edges = np.fmin(np.fmax(log_probs, LEAST_EDGE_LOG_PROB), 0.0)
        rows = zip(vertices, token_ids[:, ::-1].tolist(), edges[:, ::-1].tolist(), strict=True)
        for number, row_tokens, row_log_probs in rows:
            if number in tree and tree[number].row is None:
                tree.expand(tree[number], Row(row_tokens, row_log_probs))
        self._surface()

    # --- the wire --------------------------------------------------------------------------------

    def take_gain(self, limit: int) -> Gain | None:
        """What to send next, at most `limit` vertices; what is returned counts as sent.

        Never more than the protocol allows, see SentTree.
        """
        if self._sent.is_full:
            self._begin_tree()
        taken = self._pop_unsent(self._sent.room(limit, self.settings.max_unverified))
        if not taken:
            return None
        first_index = self._sent.send(taken)
        tree = self._tree
        candidates = Candidates(
            np.array([vertex.token_id for vertex in taken], dtype=np.int32),
            np.array([tree[vertex.parent].index for vertex in taken], dtype=np.int32),
            np.array([vertex.log_prob for vertex in taken], dtype=np.float32),
        )
        return Gain(self._sent.tree_no, first_index, self._sent.base_position, candidates)

    def commit(self, token_ids: Sequence[int]) -> bool:
        """Follow one verdict; call it once for each. True when the tree had its tokens.

        If they lie in what was sent, the tree on the wire goes on; otherwise a new one begins at
        the new root and everything alive counts as unsent.
        """
        self._sent.verdict()
        if not token_ids:
            return True
        self.num_committed += len(token_ids)
        matched = self._follow(token_ids)
        is_hit = len(matched) == len(token_ids)
        if is_hit:
            self._tree.reroot(matched[-1])
        else:
            root = LocalVertex(self._tree.next_number, token_ids[-1])
            self._tree = LocalTree(root, next_number=root.number + 1)
        if self._sent.has(self._tree.root):
            self._sent.num_unverified = sum(map(self._sent.has, self._tree)) - 1
            self._refill_unsent()
        else:
            self._begin_tree()
        self._refill_frontier()
        self._surface()
        return is_hit

    def restart(self) -> None:
        """The other side has lost the tree on the wire: begin the next one at the root."""
        self._begin_tree()

    def resume(self) -> None:
        """A new link: tree numbers and the protocol's counts begin anew, the tree is kept."""
        self._sent.new_link()
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
        self._surface()

    # --- inside ----------------------------------------------------------------------------------

    def _begin_tree(self) -> None:
        self._sent.begin(self._tree.root, self.num_committed)
        self._refill_unsent()

    def _follow(self, token_ids: Sequence[int]) -> list[LocalVertex]:
        """The vertices below the root that tokens match, in rows too; the tree must be rerooted."""
        matched: list[LocalVertex] = []
        at = self._tree.root
        for token_id in token_ids:
            child = self._tree.child(at, token_id)
            if child is None:
                break
            matched.append(child)
            at = child
        return matched

    def _surface(self) -> None:
        """Everything probable enough becomes a vertex to send and to expand."""
        for vertex in self._tree.surface(self._least_total(), self.settings.max_local):
            entry = (-vertex.total, vertex.number)
            heapq.heappush(self._frontier, entry)
            heapq.heappush(self._unsent, entry)

    def _deepest(self) -> int:
        """Vertices at this depth of the local tree or below it are not expanded."""
        root_depth = self._tree.root.depth
        deepest = root_depth + self.settings.look_ahead
        if self._max_position is None:
            return deepest
        return min(deepest, root_depth + self._max_position - self.num_committed)

    def _least_total(self) -> float:
        return self._tree.root.total + _log(self.settings.min_prob)

    def _pop_unsent(self, limit: int) -> list[LocalVertex]:
        """Most probable first; a parent is no less probable and older, so it comes first."""
        least = self._least_total()
        heap, tree = self._unsent, self._tree
        taken: list[LocalVertex] = []
        while heap and len(taken) < limit and -heap[0][0] >= least:
            taken.append(tree[heapq.heappop(heap)[1]])
        return taken

    def _refill_unsent(self) -> None:
        has = self._sent.has
        self._unsent = [(-v.total, v.number) for v in self._tree if not has(v)]
        heapq.heapify(self._unsent)

    def _refill_frontier(self) -> None:
        self._frontier = [(-v.total, v.number) for v in self._tree if v.row is None]
        heapq.heapify(self._frontier)
        self._offered = []


def _log(prob: float) -> float:
    return math.log(prob) if prob > 0 else -math.inf
