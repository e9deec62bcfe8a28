"""The plain twin of `tree/binding.py`: every child of every row is merged and goes on the heap."""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from specedge_p2p.tree.binding import BindLimits, BoundRows, SourceTree
from specedge_p2p.tree.draft_tree import Vertex
from specedge_p2p.tree.merging import LESSER_SHARE
from specedge_p2p.tree.ngram import NgramGuess

_NEVER = 1 << 62


@dataclass(slots=True)
class _Held:
    """One source's vertex: its way from the root has probability factor * exp(total - base)."""

    at: int
    vertex: Vertex
    base: float


@dataclass(slots=True)
class _Merged:
    """A vertex that may become a row: the same path in all trees that have it."""

    token_id: int
    parent_row: int
    depth: int
    guessed: float = 0.0
    """Its probability by the trees alone, not held at 1: factors may exceed it."""
    prob: float = 0.0
    held: list[_Held] = field(default_factory=list)
    is_ngram: bool = False
    covered: float = 0.0

    def nodes(self, sources: Sequence[SourceTree]) -> list[_Held]:
        """What nodes hold of it, first arrival first."""
        nodes = [held for held in self.held if not sources[held.at].is_own]
        return sorted(nodes, key=lambda held: (held.vertex.arrival, held.at))


_Entry = tuple[float, int, int, int, int, int, _Merged]


class _Binder:
    def __init__(
        self,
        sources: Sequence[SourceTree],
        ngram: NgramGuess,
        ngram_hit_rate: float,
        limits: BindLimits,
    ) -> None:
        self.sources = [source for source in sources if source.tree.is_full]
        self.ranks = _ranks(self.sources)
        self.ngram = ngram
        self.ngram_hit_rate = ngram_hit_rate
        self.limits = limits

    def rows(self, root_token: int) -> list[_Merged]:
        roots = [source.tree.tree.root_vertex for source in self.sources]
        held = [_Held(at, root, root.total) for at, root in enumerate(roots)]
        root = _Merged(root_token, -1, 0, 1.0, 1.0, held, bool(self.ngram.token_ids))
        rows = [root]
        heap: list[_Entry] = []
        self._push_children(heap, root, 0)
        while heap and len(rows) <= self.limits.max_rows:
            best = heapq.heappop(heap)[-1]
            rows.append(best)
            self._push_children(heap, best, len(rows) - 1)
        return rows

    def _push_children(self, heap: list[_Entry], above: _Merged, row: int) -> None:
        if above.depth >= self.limits.max_depth:
            above.covered = above.prob
            return
        children = self._children(above, row)
        for child in children:
            above.covered = min(above.prob, above.covered + child.prob)
            if child.prob < self.limits.row_price:
                continue
            nodes = child.nodes(self.sources)
            first = nodes[0].vertex if nodes else None
            arrival, index = (first.arrival, first.index) if first else (_NEVER, _NEVER)
            entry = (-child.prob, child.depth, arrival, index, child.token_id, row, child)
            heapq.heappush(heap, entry)

    def _children(self, above: _Merged, row: int) -> Iterable[_Merged]:
        """All known children of a vertex with their probabilities."""
        depth = above.depth + 1
        found: dict[int, _Merged] = {}
        for held in above.held:
            claimed = max(1.0, held.vertex.mass)
            for token_id, vertex in held.vertex.children.items():
                child = found.setdefault(token_id, _Merged(token_id, row, depth))
                child.held.append(_Held(held.at, vertex, held.base + math.log(claimed)))
        leading = min(
            (self.ranks[held.at] for held in above.held if held.vertex.children), default=0
        )
        for child in found.values():
            self._merge(child, leading)
        if above.is_ngram and depth <= len(self.ngram.token_ids):
            token_id = self.ngram.token_ids[depth - 1]
            child = found.setdefault(token_id, _Merged(token_id, row, depth))
            child.is_ngram = True
            missed = (1.0 - min(1.0, child.guessed)) * (1.0 - self.ngram_hit_rate**depth)
            child.prob = 1.0 - missed
        for child in found.values():
            child.prob = min(child.prob, above.prob)
        return found.values()

    def _merge(self, child: _Merged, leading: int) -> None:
        """Settle what the trees say of a child, and what each of them is scaled with below it."""
        by_rank: dict[int, float] = {}
        for held in child.held:
            rank = self.ranks[held.at]
            by_rank[rank] = max(by_rank.get(rank, 0.0), self._claim(held))
        believed = min(by_rank)
        share = 1.0 if believed == leading else LESSER_SHARE
        child.guessed = share * by_rank[believed]
        child.prob = min(1.0, child.guessed)
        for held in child.held:
            said = by_rank[self.ranks[held.at]]
            if said != child.guessed:
                held.base += _ratio_log(said, child.guessed)

    def _claim(self, held: _Held) -> float:
        return self.sources[held.at].factor * math.exp(held.vertex.total - held.base)


def _ranks(sources: Sequence[SourceTree]) -> list[int]:
    """Place of each source's draft model among them, 0 for the most believed."""
    qualities: dict[int, float] = {}
    for source in sources:
        qualities[source.draft] = max(qualities.get(source.draft, -math.inf), source.quality)
    order = sorted(qualities, key=lambda draft: (-qualities[draft], draft))
    return [order.index(source.draft) for source in sources]


def _ratio_log(said: float, counts: float) -> float:
    """What to add to a base so that `said` becomes `counts`; nothing that vanishes comes back."""
    if said <= 0.0 or counts <= 0.0:
        return math.inf
    return math.log(said) - math.log(counts)


def plain_bind(
    root_token: int,
    sources: Sequence[SourceTree],
    ngram: NgramGuess,
    ngram_hit_rate: float,
    limits: BindLimits,
) -> BoundRows:
    """Choose one session's rows: by probability, then depth, then arrival, index and token.

    Args:
        root_token: the last committed token.
        sources: the trees of nodes and of the engine.
        ngram: a chain below the root.
        ngram_hit_rate: probability of its first token; each further one has the same again.
        limits: see BindLimits.
    """
    binder = _Binder(sources, ngram, ngram_hit_rate, limits)
    rows = binder.rows(root_token)
    nodes = [[binder.sources[h.at].source for h in row.nodes(binder.sources)] for row in rows]
    nodes[0] = []  # nobody guessed the root
    own = [any(binder.sources[h.at].is_own for h in row.held) for row in rows]
    own[0] = False
    return BoundRows(
        token_ids=[row.token_id for row in rows],
        parents=[row.parent_row for row in rows],
        depths=[row.depth for row in rows],
        probs=[row.prob for row in rows],
        sources=[by[0] if by else 0 for by in nodes],
        seconds=[by[1] if len(by) > 1 else 0 for by in nodes],
        is_ngram=[row.is_ngram and row.depth > 0 for row in rows],
        covered=[row.covered for row in rows],
        is_own=own,
    )
