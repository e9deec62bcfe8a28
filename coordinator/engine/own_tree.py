"""The tree that the engine's own draft model grows in one session, kept over its steps.

A vertex is expanded when the draft model was asked what follows it. Expanded vertices are closed
under parents: who expands a vertex expands its ancestors with it. A row that only nodes proposed
can be expanded too; the tree then holds a *stand-in* for it, which carries the probability of what
the draft model says below, and which is no guess of the draft model's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from coordinator.engine.messages import LevelTerms, SourceSeen
from specedge_p2p.lm.ports import Children
from specedge_p2p.tree.binding import BoundRows, SourceTree
from specedge_p2p.tree.draft_tree import Candidates, Vertex
from specedge_p2p.tree.merging import LESSER_SHARE
from specedge_p2p.tree.received_tree import ReceivedTree

OWN_SOURCE = 0
NO_VERTEX = -1
LEAST_PROB = 0.003
"""Children of the root are kept down to this; deeper ones as far as this step may take them."""
PRICE_SHARE = 0.5
"""What is cheaper than this share of a row's price will not become one."""
_LEAST_LOG_PROB = -100.0
_ARRIVAL = 1 << 61
"""Of a tie a node's vertex gets the row."""
MAX_MARKS = 4096
"""Marks of expanded vertices that are kept before those of dead ones are forgotten."""


@dataclass(frozen=True, slots=True)
class Level:
    """What one level found for one session.

    Args:
        rows: the n bound rows that it expanded, ascending.
        children: of these, [n, any].
        row_price: see VerificationBatch.
        vocab_size: the target's; tokens outside are left out.
    """

    rows: Sequence[int]
    children: Children
    row_price: float
    vocab_size: int


class OwnTree:
    """One session's; see the head of this file."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._num_committed = len(token_ids)
        self._received = ReceivedTree(1, len(token_ids), (), token_ids[-1])
        self._expanded: set[int] = set()
        self._stand_ins: set[int] = set()

    def source(self, terms: LevelTerms) -> SourceTree:
        return SourceTree(
            OWN_SOURCE, self._received, terms.factor, terms.draft, terms.quality, is_own=True
        )

    def vertices(self, bound: BoundRows) -> list[int]:
        """The vertex of each bound row, NO_VERTEX for rows that the tree does not have."""
        found: list[Vertex | None] = [self._received.tree.root_vertex]
        rows = zip(bound.parents, bound.token_ids, strict=True)
        for parent, token_id in islice(rows, 1, None):
            above = found[parent]
            found.append(None if above is None else above.children.get(token_id))
        return [NO_VERTEX if vertex is None else vertex.index for vertex in found]

    def walk(self, token_ids: Iterable[int]) -> list[int]:
        """The vertices that tokens after the root match, as far as they do."""
        found, at = [], self._received.tree.root_vertex
        for token_id in token_ids:
            below = at.children.get(token_id)
            if below is None:
                break
            found.append(below.index)
            at = below
        return found

    def is_expanded(self, vertex: int) -> bool:
        return vertex in self._expanded

    def guesses(self, bound: BoundRows) -> BoundRows:
        """The same rows; those with a stand-in are none of ours."""
        if not self._stand_ins:
            return bound
        marks = zip(bound.is_own, self.vertices(bound), strict=True)
        return replace(bound, is_own=[own and v not in self._stand_ins for own, v in marks])

    def hang(self, bound: BoundRows, vertices: list[int], level: Level) -> None:
        """Hang children below rows, whose parents are expanded or stand before them.

        Args:
            bound: the session's rows.
            vertices: of each of them, as `vertices` says; stand-ins are written into it.
            level: the rows that were expanded and their children.
        """
        new = _NewVertices(self._received.next_index)
        probs, price = bound.probs, PRICE_SHARE * level.row_price
        children = level.children
        lines = zip(
            level.rows, children.token_ids.tolist(), children.log_probs.tolist(), strict=True
        )
        for row, token_ids, log_probs in lines:
            if vertices[row] == NO_VERTEX:
                vertices[row] = self._vertex_of(bound, row, vertices, new)
            self._expanded.add(vertices[row])
            least = max(LEAST_PROB, price) / probs[row] if row else LEAST_PROB
            least_log_prob = math.log(least)
            for token_id, log_prob in zip(token_ids, log_probs, strict=True):
                if not log_prob >= least_log_prob:
                    break  # the best come first
                if token_id < level.vocab_size:
                    new.add(vertices[row], token_id, min(0.0, log_prob))
        self._received.extend(new.first_index, new.columns(), _ARRIVAL)

    def commit(self, token_ids: Sequence[int]) -> None:
        """Follow newly committed tokens; without them the tree begins anew at the last one."""
        self._num_committed += len(token_ids)
        self._received.commit(token_ids)
        if not self._received.is_full:
            self._begin(token_ids[-1])
        elif len(self._expanded) > MAX_MARKS:
            self._expanded = {v for v in self._expanded if v in self._received.tree}
            self._stand_ins = {v for v in self._stand_ins if v in self._received.tree}

    def restart(self) -> None:
        """Forget all guesses."""
        self._begin(self._received.tree.root_vertex.token_id)

    def first_guess(self, chosen: int) -> SourceSeen | None:
        """How the root's children fared, None where it was not expanded; see SourceSeen."""
        root = self._received.tree.root_vertex
        if not self.is_expanded(root.index):
            return None
        guesses = [v for v in root.children.values() if v.index not in self._stand_ins]
        predicted = sum(math.exp(vertex.log_prob) for vertex in guesses)
        is_hit = any(vertex.token_id == chosen for vertex in guesses)
        return SourceSeen(OWN_SOURCE, min(1.0, predicted), is_hit)

    def _begin(self, root_token: int) -> None:
        self._received = ReceivedTree(1, self._num_committed, (), root_token)
        self._expanded, self._stand_ins = set(), set()

    def _vertex_of(
        self, bound: BoundRows, row: int, vertices: list[int], new: "_NewVertices"
    ) -> int:
        """A row's vertex: among the new ones, or a stand-in made for it.

        Its probability is what binding makes of a guess that this draft model did not make.
        """
        parent = bound.parents[row]
        token_id = bound.token_ids[row]
        found = new.child(vertices[parent], token_id)
        if found is None:
            above, prob = bound.probs[parent], bound.probs[row]
            share = LESSER_SHARE * prob / above if above > 0 else 0.0
            log_prob = math.log(share) if share > 0 else _LEAST_LOG_PROB
            found = new.add(vertices[parent], token_id, log_prob)
            self._stand_ins.add(found)
        return found


class _NewVertices:
    """Collects what one level hangs into a tree, so that it goes in as one block of columns."""

    def __init__(self, first_index: int) -> None:
        self.first_index = first_index
        self._token_ids: list[int] = []
        self._parents: list[int] = []
        self._log_probs: list[float] = []
        self._children: dict[tuple[int, int], int] = {}

    def child(self, parent: int, token_id: int) -> int | None:
        return self._children.get((parent, token_id))

    def add(self, parent: int, token_id: int, log_prob: float) -> int:
        """The index of a new vertex."""
        index = self.first_index + len(self._token_ids)
        self._token_ids.append(token_id)
        self._parents.append(parent)
        self._log_probs.append(log_prob)
        self._children[parent, token_id] = index
        return index

    def columns(self) -> Candidates:
        return Candidates(
            np.array(self._token_ids, dtype=np.int32),
            np.array(self._parents, dtype=np.int32),
            np.array(self._log_probs, dtype=np.float32),
        )
