"""The tree that the engine's own draft model grows in one session, kept over its steps.

A vertex is expanded when the draft model was asked what follows it. Expanded vertices are closed
under parents: who expands a vertex expands its ancestors with it. A row that only nodes proposed
can be expanded too; the tree then holds a *stand-in* for it, which carries the probability of what
the draft model says below, and which is no guess of the draft model's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from coordinator.engine.messages import LevelTerms, SourceSeen
from specedge_p2p.lm.ports import Children
from specedge_p2p.tree.binding import LESSER_SHARE, BoundRows, SourceTree
from specedge_p2p.tree.draft_tree import Candidates
from specedge_p2p.tree.received_tree import ReceivedTree

OWN_SOURCE = 0
NO_VERTEX = -1
LEAST_PATH_LOG_PROB = math.log(0.001)
"""Children less probable than this from the root are not kept: no step would take them."""
_LEAST_EDGE_LOG_PROB = -100.0
_ARRIVAL = 1 << 61
"""Of a tie a node's vertex gets the row."""
_MAX_MARKS = 4096


class OwnTree:
    """One session's; see the head of this file."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._num_committed = len(token_ids)
        self._received = ReceivedTree(1, len(token_ids), (), token_ids[-1])
        self._expanded: set[int] = set()
        self._stand_ins: set[int] = set()

    @property
    def num_live(self) -> int:
        return self._received.num_live

    def source(self, terms: LevelTerms) -> SourceTree:
        return SourceTree(
            OWN_SOURCE, self._received, terms.factor, terms.draft, terms.quality, is_own=True
        )

    def vertices(self, bound: BoundRows) -> list[int]:
        """The vertex of each bound row, NO_VERTEX for rows that the tree does not have."""
        child = self._received.tree.child
        found = [self._received.matched]
        rows = zip(bound.parents.tolist(), bound.token_ids.tolist(), strict=True)
        for parent, token_id in list(rows)[1:]:
            above = found[parent]
            below = None if above == NO_VERTEX else child(above, token_id)
            found.append(NO_VERTEX if below is None else below)
        return found

    def walk(self, token_ids: Iterable[int]) -> list[int]:
        """The vertices that tokens after the root match, as far as they do."""
        found, at = [], self._received.matched
        for token_id in token_ids:
            below = self._received.tree.child(at, token_id)
            if below is None:
                break
            found.append(below)
            at = below
        return found

    def is_expanded(self, vertex: int) -> bool:
        return vertex in self._expanded

    def guesses(self, bound: BoundRows) -> BoundRows:
        """The same rows; those with a stand-in are none of ours."""
        if not self._stand_ins:
            return bound
        is_stand_in = np.array([vertex in self._stand_ins for vertex in self.vertices(bound)])
        return replace(bound, is_own=bound.is_own & ~is_stand_in)

    def hang(
        self, bound: BoundRows, rows: Sequence[int], children: Children, vocab_size: int
    ) -> list[int]:
        """Hang children below rows, whose parents are expanded or stand before them.

        Args:
            bound: the session's rows.
            rows: n of them, ascending.
            children: of these rows, [n, any].
            vocab_size: the target's; what lies outside is left out.

        Returns the vertices of `rows`.
        """
        vertices = self.vertices(bound)
        new = _NewVertices(self._received)
        lines = zip(rows, children.token_ids.tolist(), children.log_probs.tolist(), strict=True)
        for row, token_ids, log_probs in lines:
            if vertices[row] == NO_VERTEX:
                vertices[row] = self._vertex_of(bound, row, vertices, new)
            self._expanded.add(vertices[row])
            for token_id, log_prob in zip(token_ids, log_probs, strict=True):
                if token_id < vocab_size:
                    new.add(vertices[row], token_id, log_prob)
        new.hang()
        return [vertices[row] for row in rows]

    def commit(self, token_ids: Sequence[int]) -> None:
        """Follow newly committed tokens; without them the tree begins anew at the last one."""
        self._num_committed += len(token_ids)
        self._received.commit(token_ids)
        if not self._received.is_full:
            self._begin(token_ids[-1])
        elif len(self._expanded) > _MAX_MARKS:
            self._expanded = {v for v in self._expanded if v in self._received.tree}
            self._stand_ins = {v for v in self._stand_ins if v in self._received.tree}

    def restart(self) -> None:
        """Forget all guesses."""
        tree = self._received.tree
        self._begin(tree.token_id(tree.root))

    def first_guess(self, chosen: int) -> SourceSeen | None:
        """How the root's children fared, None where it was not expanded; see SourceSeen."""
        tree = self._received.tree
        if not self.is_expanded(tree.root):
            return None
        guesses = [v for v in tree.children(tree.root) if v not in self._stand_ins]
        predicted = sum(math.exp(tree.log_prob(vertex)) for vertex in guesses)
        is_hit = any(tree.token_id(vertex) == chosen for vertex in guesses)
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
        parent = int(bound.parents[row])
        token_id = int(bound.token_ids[row])
        found = new.child(vertices[parent], token_id)
        if found is None:
            above, prob = float(bound.probs[parent]), float(bound.probs[row])
            share = LESSER_SHARE * prob / above if above > 0 else 0.0
            found = new.force(vertices[parent], token_id, math.log(share) if share > 0 else -100.0)
            self._stand_ins.add(found)
        return found


class _NewVertices:
    """Collects what one level hangs into a tree, so that it goes in as one block of columns."""

    def __init__(self, received: ReceivedTree) -> None:
        self._received = received
        self._first_index = received.next_index
        self._token_ids: list[int] = []
        self._parents: list[int] = []
        self._log_probs: list[float] = []
        self._path_log_probs: list[float] = []
        self._children: dict[tuple[int, int], int] = {}

    def child(self, parent: int, token_id: int) -> int | None:
        return self._children.get((parent, token_id))

    def add(self, parent: int, token_id: int, log_prob: float) -> None:
        """Keep a child that is probable enough and not there yet."""
        edge = min(0.0, max(_LEAST_EDGE_LOG_PROB, log_prob))
        if self._path_log_prob(parent) + edge >= LEAST_PATH_LOG_PROB:
            self.force(parent, token_id, edge)

    def force(self, parent: int, token_id: int, log_prob: float) -> int:
        index = self._first_index + len(self._token_ids)
        self._path_log_probs.append(self._path_log_prob(parent) + log_prob)
        self._token_ids.append(token_id)
        self._parents.append(parent)
        self._log_probs.append(log_prob)
        self._children[parent, token_id] = index
        return index

    def hang(self) -> None:
        columns = Candidates(
            np.array(self._token_ids, dtype=np.int32),
            np.array(self._parents, dtype=np.int32),
            np.array(self._log_probs, dtype=np.float32),
        )
        self._received.extend(self._first_index, columns, _ARRIVAL)

    def _path_log_prob(self, vertex: int) -> float:
        if vertex < self._first_index:
            return self._received.tree.path_log_prob(vertex)
        return self._path_log_probs[vertex - self._first_index]
