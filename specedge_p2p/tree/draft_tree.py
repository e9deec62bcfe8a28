"""A tree of guessed tokens whose vertices keep their index for life.

What a step waits for costs as little as it can. Children are ranked when they arrive, so that the
best is at hand. A new root only cuts the tree: what died is forgotten vertex by vertex before
anybody asks what is alive, so each vertex is paid for once, after it arrived.
"""

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import exp, inf

import numpy as np
import numpy.typing as npt


class TreeError(ValueError):
    """Vertices that no tree can have; on the wire a fault of whoever sent them."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """New vertices, parents first, in columns that cannot be written to.

    Args:
        token_ids: int32 [n].
        parents: int32 [n], tree indices.
        log_probs: float32 [n], natural log P(token | parent), never above 0.

    Raises TreeError for columns of different lengths.
    """

    token_ids: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    log_probs: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if not self.token_ids.shape == self.parents.shape == self.log_probs.shape:
            raise TreeError("the columns of candidates differ in length")
        for name in ("token_ids", "parents", "log_probs"):
            column = getattr(self, name)
            if column.flags.writeable:
                column = column.view()
                column.flags.writeable = False
                object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.token_ids)


class Vertex:
    """One guessed token. Read only outside this module.

    `total` is the log probability of the way from the first root down to here; only differences of
    totals mean something. `children` are keyed by token id, in the order of their arrival;
    `ranked` has the same ones, the most probable first, then by index. `mass` is the sum of their
    probabilities given this vertex.
    """

    __slots__ = (
        "arrival",
        "children",
        "depth",
        "index",
        "log_prob",
        "mass",
        "parent",
        "ranked",
        "token_id",
        "total",
    )

    def __init__(
        self,
        index: int,
        token_id: int,
        log_prob: float,
        arrival: int,
        above: "Vertex | None" = None,
    ) -> None:
        self.index = index
        self.token_id = token_id
        self.log_prob = log_prob
        self.arrival = arrival
        if above is None:
            self.parent, self.depth, self.total = -1, 0, 0.0
        else:
            self.parent, self.depth = above.index, above.depth + 1
            self.total = above.total + log_prob
        self.mass = 0.0
        self.children = _NO_CHILDREN
        self.ranked = _UNRANKED


_NO_CHILDREN: dict[int, Vertex] = {}
_UNRANKED: list[Vertex] = []
"""Of all leaves, which most vertices stay for life; a first child brings containers of its own."""


class DraftTree:
    """Live vertices below a root. Indices rise, are never renumbered and never used twice."""

    __slots__ = ("_dead", "_last_index", "_root", "_vertices")

    def __init__(self, root_token: int, root_index: int = 0) -> None:
        self._root = Vertex(root_index, root_token, 0.0, 0)
        self._vertices = {root_index: self._root}
        self._last_index = root_index
        self._dead: list[Vertex] = []
        """Tops of what died but is still among the vertices."""

    @property
    def root(self) -> int:
        return self._root.index

    @property
    def root_vertex(self) -> Vertex:
        return self._root

    def __len__(self) -> int:
        """Live vertices, the root not counted."""
        return len(self._alive()) - 1

    def __contains__(self, index: object) -> bool:
        return index in self._alive()

    def __iter__(self) -> Iterator[int]:
        """Live indices without the root, ascending."""
        return (index for index in self._alive() if index != self._root.index)

    def extend(
        self,
        first_index: int,
        columns: Iterable[tuple[int, int, float]],
        arrival: int,
        max_depth: float,
    ) -> int:
        """Hang vertices of consecutive indices; returns how many found no living parent.

        Args:
            first_index: of the first of them.
            columns: parent, token and log probability of each.
            arrival: of all.
            max_depth: no vertex may stand more levels below the first root.

        Raises TreeError for a first index that is not above all before it, for equal siblings, for
        a vertex too far down, and as `check_vertex` does.
        """
        index = first_index - 1
        if index < self._last_index:
            raise TreeError(f"index {first_index} does not follow {self._last_index}")
        vertices = self._alive() if self._dead else self._vertices
        num_lost = 0
        for parent, token_id, log_prob in columns:
            index += 1
            check_vertex(index, parent, log_prob)
            above = vertices.get(parent)
            if above is None:
                num_lost += 1
                continue
            if above.depth >= max_depth:
                raise TreeError(f"vertex {index} stands beyond the last position")
            vertices[index] = _hang(above, index, token_id, log_prob, arrival)
        self._last_index = index
        return num_lost

    def vertex(self, index: int) -> Vertex:
        """The vertex itself, for walks that must be fast. KeyError when it is not alive."""
        return self._alive()[index]

    def reroot(self, index: int) -> None:
        """Keep only `index` and what lies below it. KeyError when it is not alive.

        Takes time by the number of levels between the two roots alone.
        """
        old, vertices = self._root, self._vertices
        new = at = vertices[index]
        while at is not old:
            above = vertices.get(at.parent)
            if above is None or above.children.get(at.token_id) is not at:
                raise KeyError(index)  # cut off before, and not yet forgotten
            at = above
        if new is not old:
            del vertices[new.parent].children[new.token_id]
            self._root = new
            self._dead.append(old)

    def prune_below_root(self) -> None:
        """Drop everything but the root."""
        root = self._root
        self._dead += root.ranked
        root.children, root.ranked, root.mass = _NO_CHILDREN, _UNRANKED, 0.0

    def _alive(self) -> dict[int, Vertex]:
        """All live vertices, after forgetting the dead ones."""
        dead, vertices = self._dead, self._vertices
        if dead:
            self._dead = []
            for vertex in dead:  # grows while it is walked: all descendants
                dead.extend(vertex.children.values())
                del vertices[vertex.index]
        return vertices


def check_vertex(index: int, parent: int, log_prob: float) -> None:
    """Raises TreeError for what no vertex can be, whatever tree it hangs in."""
    if not 0 <= parent < index:
        raise TreeError(f"vertex {index} cannot have parent {parent}")
    if not -inf < log_prob <= 0.0:
        raise TreeError("a log probability is above 0 or not finite")


def _hang(above: Vertex, index: int, token_id: int, log_prob: float, arrival: int) -> Vertex:
    """A new child, ranked among its siblings. Raises TreeError where one has its token."""
    children, ranked = above.children, above.ranked
    if token_id in children:
        raise TreeError(f"vertex {above.index} has a child with token {token_id} already")
    vertex = Vertex(index, token_id, log_prob, arrival, above)
    above.mass += exp(log_prob)
    if not ranked:
        above.children, above.ranked = {token_id: vertex}, [vertex]
        return vertex
    children[token_id] = vertex
    if log_prob > ranked[-1].log_prob:
        insort(ranked, vertex, key=_rank)
    else:  # as honest nodes send them
        ranked.append(vertex)
    return vertex


def _rank(vertex: Vertex) -> float:
    return -vertex.log_prob
