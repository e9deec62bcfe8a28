"""The vertices of a growing tree, made only when somebody needs them.

An expansion brings `branch_width` children, most of them far too improbable to be sent or expanded.
They stay in the *row* of their parent, two short lists, and *surface* as vertices when they become
probable enough: a verdict that moves the root down raises all that is left below it. So a level
costs what is worth sending, not what the model said.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field


class LocalVertex:
    """One guessed token. Read only outside this module, but for `sent_in` and `index`.

    `total` is the log probability of the way from some root of the past down to here; only
    differences of totals mean something. `index` is the tree index on the wire in the tree that
    `sent_in` numbers.
    """

    __slots__ = (
        "children",
        "depth",
        "index",
        "log_prob",
        "number",
        "parent",
        "row",
        "sent_in",
        "token_id",
        "total",
    )

    def __init__(
        self,
        number: int,
        token_id: int,
        parent: "LocalVertex | None" = None,
        log_prob: float = 0.0,
    ) -> None:
        self.number = number
        self.token_id = token_id
        self.log_prob = log_prob
        if parent is None:
            self.parent, self.depth, self.total = -1, 0, 0.0
        else:
            self.parent = parent.number
            self.depth = parent.depth + 1
            self.total = parent.total + log_prob
        self.children: dict[int, LocalVertex] = {}
        self.row: Row | None = None
        self.sent_in = 0
        self.index = 0


@dataclass(slots=True)
class Row:
    """The children of an expanded vertex that have not surfaced, most probable last.

    `log_probs` are finite and at most 0. The lists grow shorter as children surface.
    """

    token_ids: list[int]
    log_probs: list[float]


@dataclass(slots=True)
class LocalTree:
    """Live vertices below a root; numbers rise and are never used twice."""

    root: LocalVertex
    next_number: int
    _vertices: dict[int, LocalVertex] = field(default_factory=dict)
    _rows: list[tuple[float, int]] = field(default_factory=list)
    """A heap with the best total that may lie in a vertex's row, negated; never too low."""

    def __post_init__(self) -> None:
        self._vertices[self.root.number] = self.root

    def __len__(self) -> int:
        """Live vertices, the root not counted."""
        return len(self._vertices) - 1

    def __contains__(self, number: object) -> bool:
        return number in self._vertices

    def __iter__(self) -> Iterator[LocalVertex]:
        """Live vertices, the root first, parents before children."""
        return iter(self._vertices.values())

    def __getitem__(self, number: int) -> LocalVertex:
        """Raises KeyError when it is not alive."""
        return self._vertices[number]

    def expand(self, vertex: LocalVertex, row: Row) -> None:
        """Give a vertex its children; none of them surfaces yet."""
        vertex.row = row
        self._wait(vertex)

    def surface(self, least_total: float, most: int) -> list[LocalVertex]:
        """Make vertices of all that has at least this total, until there are `most`."""
        found: list[LocalVertex] = []
        room = most - len(self)
        while self._rows and -self._rows[0][0] >= least_total and len(found) < room:
            vertex = self._vertices[heapq.heappop(self._rows)[1]]
            row = vertex.row
            assert row is not None  # noqa: S101 - only expanded vertices wait
            above, token_ids, log_probs = vertex.total, row.token_ids, row.log_probs
            while log_probs and above + log_probs[-1] >= least_total and len(found) < room:
                found.append(self._add(vertex, token_ids.pop(), log_probs.pop()))
            self._wait(vertex)
        return found

    def child(self, vertex: LocalVertex, token_id: int) -> LocalVertex | None:
        """A child that has surfaced already, or does so now."""
        found = vertex.children.get(token_id)
        row = vertex.row
        if found is None and row is not None and token_id in row.token_ids:
            at = row.token_ids.index(token_id)
            found = self._add(vertex, row.token_ids.pop(at), row.log_probs.pop(at))
        return found

    def reroot(self, root: LocalVertex) -> None:
        """Keep only `root` and what lies below it."""
        kept = [root]
        for vertex in kept:  # grows while it is walked: all descendants
            if vertex.children:
                kept.extend(vertex.children.values())
        self.root = root
        self._vertices = {vertex.number: vertex for vertex in kept}
        self._rows = [
            (-(vertex.total + vertex.row.log_probs[-1]), vertex.number)
            for vertex in kept
            if vertex.row is not None and vertex.row.log_probs
        ]
        heapq.heapify(self._rows)

    def _add(self, parent: LocalVertex, token_id: int, log_prob: float) -> LocalVertex:
        vertex = LocalVertex(self.next_number, token_id, parent, log_prob)
        self.next_number += 1
        parent.children[token_id] = vertex
        self._vertices[vertex.number] = vertex
        return vertex

    def _wait(self, vertex: LocalVertex) -> None:
        if vertex.row is not None and vertex.row.log_probs:
            entry = (-(vertex.total + vertex.row.log_probs[-1]), vertex.number)
            heapq.heappush(self._rows, entry)
