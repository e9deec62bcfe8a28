"""The lazy tree against one that makes every vertex at once."""

import math
import random
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.local_tree import LocalTree, LocalVertex, Row

Path = tuple[int, ...]


@dataclass
class EagerTree:
    """All that was ever said of a tree, by token path from its first root."""

    root: Path = ()
    log_probs: dict[Path, float] = field(default_factory=lambda: {(): 0.0})
    expanded: set[Path] = field(default_factory=set)

    def expand(self, path: Path, children: list[tuple[int, float]]) -> None:
        self.expanded.add(path)
        for token, log_prob in children:
            self.log_probs[*path, token] = log_prob

    def total(self, path: Path) -> float:
        ways = (path[: i + 1] for i in range(len(self.root), len(path)))
        return sum(self.log_probs[way] for way in ways)

    def alive(self, least: float) -> set[Path]:
        """All below the root that are probable enough."""
        below = (path for path in self.log_probs if path[: len(self.root)] == self.root)
        return {path for path in below if path != self.root and self.total(path) >= least}


def path_of(tree: LocalTree, vertex: LocalVertex, base: Path) -> Path:
    tokens: list[int] = []
    while vertex is not tree.root:
        tokens.append(vertex.token_id)
        vertex = tree[vertex.parent]
    return (*base, *reversed(tokens))


@given(st.integers(0, 2**32))
def test_exactly_what_is_probable_enough_surfaces(seed: int) -> None:
    rng = random.Random(seed)
    tree, eager = LocalTree(LocalVertex(0, 9), next_number=1), EagerTree()
    least = math.log(0.05)
    numbers = {0}
    for _ in range(30):
        if rng.random() < 0.8:
            choices = [vertex for vertex in tree if vertex.row is None]
            if not choices:
                break
            vertex = rng.choice(choices)
            tokens = rng.sample(range(20), 4)
            edges = sorted((math.log(rng.uniform(0.01, 1.0)) for _ in tokens), reverse=True)
            eager.expand(path_of(tree, vertex, eager.root), list(zip(tokens, edges, strict=True)))
            tree.expand(vertex, Row(tokens[::-1], edges[::-1]))
        else:
            below = [p for p in eager.log_probs if p[:-1] == eager.root and p != eager.root]
            if not below:
                continue
            path = rng.choice(sorted(below))
            child = tree.child(tree.root, path[-1])
            assert child is not None
            assert tree.child(tree.root, 99) is None
            tree.reroot(child)
            eager.root = path
        found = tree.surface(tree.root.total + least - 1e-9, 10_000)
        assert not numbers & {vertex.number for vertex in found}
        numbers |= {vertex.number for vertex in found}
        surfaced = {path_of(tree, v, eager.root) for v in tree} - {eager.root}
        # Below a new root everything is more probable than before, so nothing is there too early.
        assert eager.alive(least) <= surfaced
        assert all(eager.total(path) >= least - 1e-6 for path in surfaced)
        assert len(tree) == len(surfaced)


def test_no_more_than_asked_for_surface_and_the_rest_later() -> None:
    tree = LocalTree(LocalVertex(0, 9), next_number=1)
    tree.expand(tree.root, Row([3, 2, 1], [-100.0, -0.2, -0.1]))
    assert [v.token_id for v in tree.surface(-1.0, 1)] == [1]
    assert [v.token_id for v in tree.surface(-1.0, 5)] == [2]
    assert [v.log_prob for v in tree.surface(-math.inf, 5)] == [-100.0]
    assert tree.surface(-math.inf, 5) == []
    tree.expand(tree[1], Row([], []))
    assert tree.surface(-math.inf, 5) == []
    assert 3 in tree
    assert 4 not in tree
