"""Slow and obvious twins of what tree/ does fast."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np

from specedge_p2p.tree.draft_tree import Candidates, DraftTree
from specedge_p2p.tree.received_tree import ReceivedTree

Vertices = list[tuple[int, int, float]]
"""(parent, token_id, log_prob) of the vertices 1, 2, ..."""


def columns(vertices: Iterable[tuple[int, int, float]]) -> Candidates:
    """Candidates of (parent, token_id, log_prob) rows."""
    rows = list(vertices)
    return Candidates(
        np.array([token_id for _, token_id, _ in rows], dtype=np.int32),
        np.array([parent for parent, _, _ in rows], dtype=np.int32),
        np.array([log_prob for _, _, log_prob in rows], dtype=np.float32),
    )


def received(*parts: tuple[int, Sequence[tuple[int, int, float]]]) -> ReceivedTree:
    """A tree of (arrival, vertices) extensions."""
    tree = ReceivedTree(1, 4, [], 9)
    for arrival, vertices in parts:
        tree.extend(tree.next_index, columns(vertices), arrival)
    return tree


def hang(
    tree: DraftTree, index: int, parent: int, token_id: int, log_prob: float, arrival: int = 0
) -> bool:
    """Hang one vertex; whether its parent was alive."""
    return tree.extend(index, [(parent, token_id, log_prob)], arrival, inf) == 0


def path(tree: DraftTree, index: int) -> list[int]:
    """Indices below the root down to a vertex."""
    found = []
    while index != tree.root:
        found.append(index)
        index = tree.vertex(index).parent
    return found[::-1]


def tokens_to(tree: DraftTree, index: int) -> tuple[int, ...]:
    """Tokens below the root down to a vertex."""
    return tuple(tree.vertex(at).token_id for at in path(tree, index))


def path_log_prob(tree: DraftTree, index: int) -> float:
    """Log probability of the way from the root down to a vertex."""
    return tree.vertex(index).total - tree.root_vertex.total


@dataclass
class RememberingTree:
    """Remembers everything that ever arrived and works out all answers anew each time."""

    committed: list[int] = field(default_factory=list)
    vertices: Vertices = field(default_factory=list)

    def tokens(self, index: int) -> tuple[int, ...]:
        """Tokens below the first root down to a vertex."""
        if index == 0:
            return ()
        parent, token_id, _ = self.vertices[index - 1]
        return (*self.tokens(parent), token_id)

    def path_log_prob(self, index: int) -> float:
        if index == 0:
            return 0.0
        parent, _, log_prob = self.vertices[index - 1]
        return self.path_log_prob(parent) + log_prob

    def matched(self) -> int:
        """The deepest vertex whose tokens the committed ones begin with."""
        agreeing = (
            index
            for index in range(len(self.vertices) + 1)
            if tuple(self.committed[: len(self.tokens(index))]) == self.tokens(index)
        )
        return max(agreeing, key=lambda index: len(self.tokens(index)))

    def is_full(self) -> bool:
        return len(self.tokens(self.matched())) == len(self.committed)

    def live(self) -> set[int]:
        """Indices strictly below all committed tokens."""
        num = len(self.committed)
        return {
            index
            for index in range(1, len(self.vertices) + 1)
            if len(self.tokens(index)) > num and list(self.tokens(index)[:num]) == self.committed
        }
