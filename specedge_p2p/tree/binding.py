"""Which vertices become rows of the next step: bound to the root when the step starts.

Best first from the root down, so that only vertices next to chosen ones are ever looked at. The
probability of a row never exceeds its parent's, whatever a node claims, so the rows are
prefix-closed.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specedge_p2p.tree.draft_tree import Vertex
from specedge_p2p.tree.ngram import NgramGuess
from specedge_p2p.tree.received_tree import ReceivedTree

_NEVER = 1 << 62
"""Arrival of vertices that no node sent: they lose every tie."""


@dataclass(frozen=True, slots=True)
class SourceTree:
    """A node's tree in a session.

    Args:
        source: number of the node's assignment, above 0.
        tree: brings rows only while it `is_full`.
        factor: what its path probabilities are multiplied with.
    """

    source: int
    tree: ReceivedTree
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class BindLimits:
    """What bounds the rows of one session in one step.

    Args:
        row_price: probability that a row must reach.
        max_rows: most rows below the root.
        max_depth: no row lies more levels below the root.
    """

    row_price: float
    max_rows: int
    max_depth: int


@dataclass(frozen=True, slots=True)
class BoundRows:
    """Rows of one session, parents first; row 0 is the root.

    Args:
        token_ids, parents, depths: int32 [R]; parents are rows, the root's is -1.
        probs: float32 [R], estimated probability that the row is on the accepted path.
        sources: int32 [R], whose vertex arrived first, 0 for none.
        seconds: int32 [R], another source that has it, 0 for none.
        is_ngram: bool [R], the n-gram guess has it.
    """

    token_ids: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    depths: npt.NDArray[np.int32]
    probs: npt.NDArray[np.float32]
    sources: npt.NDArray[np.int32]
    seconds: npt.NDArray[np.int32]
    is_ngram: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(slots=True)
class _Merged:
    """A vertex that may become a row: the same path in all trees that have it."""

    token_id: int
    parent_row: int
    depth: int
    prob: float = 0.0
    holders: tuple[tuple[int, Vertex], ...] = ()
    """(position of the source, its vertex), first arrival first."""
    is_ngram: bool = False


class _Binder:
    def __init__(
        self,
        sources: Sequence[SourceTree],
        ngram: NgramGuess,
        ngram_hit_rate: float,
        limits: BindLimits,
    ) -> None:
        self.sources = [source for source in sources if source.tree.is_full]
        self.roots = [source.tree.tree.vertex(source.tree.matched) for source in self.sources]
        self.ngram = ngram
        self.ngram_hit_rate = ngram_hit_rate
        self.limits = limits

    def rows(self, root_token: int) -> list[_Merged]:
        holders = tuple(enumerate(self.roots))
        root = _Merged(root_token, -1, 0, 1.0, holders, bool(self.ngram.token_ids))
        rows = [root]
        heap: list[tuple[float, int, int, int, int, int, _Merged]] = []
        self._push_children(heap, root, 0)
        while heap and len(rows) <= self.limits.max_rows:
            best = heapq.heappop(heap)[-1]
            rows.append(best)
            if len(rows) <= self.limits.max_rows:
                self._push_children(heap, best, len(rows) - 1)
        return rows

    def _push_children(
        self,
        heap: list[tuple[float, int, int, int, int, int, _Merged]],
        above: _Merged,
        row: int,
    ) -> None:
        depth = above.depth + 1
        if depth > self.limits.max_depth:
            return
        children = self._from_sources(above)
        if above.is_ngram and depth <= len(self.ngram.token_ids):
            token_id = self.ngram.token_ids[depth - 1]
            found = children.setdefault(token_id, _Merged(token_id, row, depth))
            found.is_ngram = True
            missed = (1.0 - found.prob) * (1.0 - self.ngram_hit_rate**depth)
            found.prob = 1.0 - missed
        for child in children.values():
            child.prob = min(child.prob, above.prob)
            if child.prob < self.limits.row_price:
                continue
            child.parent_row = row
            arrival, index = _NEVER, _NEVER
            if child.holders:
                first = child.holders[0][1]
                arrival, index = first.arrival, first.index
            entry = (-child.prob, depth, arrival, index, child.token_id, row, child)
            heapq.heappush(heap, entry)

    def _from_sources(self, above: _Merged) -> dict[int, _Merged]:
        """The children that the trees have, each with the largest of their probabilities."""
        children: dict[int, _Merged] = {}
        depth = above.depth + 1
        for at, vertex in above.holders:
            factor = self.sources[at].factor
            root_total = self.roots[at].total
            for token_id, below in vertex.children.items():
                prob = min(1.0, factor * math.exp(below.total - root_total))
                found = children.get(token_id)
                if found is None:
                    children[token_id] = _Merged(token_id, -1, depth, prob, ((at, below),))
                else:
                    found.prob = max(found.prob, prob)
                    found.holders = tuple(sorted((*found.holders, (at, below)), key=_arrival))
        return children


def _arrival(holder: tuple[int, Vertex]) -> tuple[int, int]:
    return holder[1].arrival, holder[0]


def bind(
    root_token: int,
    sources: Sequence[SourceTree],
    ngram: NgramGuess,
    ngram_hit_rate: float,
    limits: BindLimits,
) -> BoundRows:
    """Choose one session's rows: by probability, then depth, then arrival.

    Args:
        root_token: the last committed token.
        sources: the nodes' trees; of those that share a vertex the largest probability counts.
        ngram: a chain below the root.
        ngram_hit_rate: probability of its first token; each further one has the same again.
        limits: see BindLimits.
    """
    binder = _Binder(sources, ngram, ngram_hit_rate, limits)
    rows = binder.rows(root_token)
    numbers = [source.source for source in binder.sources]
    held = [[numbers[at] for at, _ in row.holders] for row in rows]
    held[0] = []  # nobody guessed the root
    return BoundRows(
        token_ids=np.array([row.token_id for row in rows], dtype=np.int32),
        parents=np.array([row.parent_row for row in rows], dtype=np.int32),
        depths=np.array([row.depth for row in rows], dtype=np.int32),
        probs=np.array([row.prob for row in rows], dtype=np.float32),
        sources=np.array([by[0] if by else 0 for by in held], dtype=np.int32),
        seconds=np.array([by[1] if len(by) > 1 else 0 for by in held], dtype=np.int32),
        is_ngram=np.array([row.is_ngram and row.depth > 0 for row in rows], dtype=bool),
    )
