"""The tree on the wire as its sender counts it: numbers, indices, and what may still be sent."""

from collections.abc import Sequence

from specedge_p2p.tree.local_tree import LocalVertex

LAST_TREE_INDEX = 65_000
"""A tree that has sent this index is full; the next one begins."""


class SentTree:
    """What was sent since the committed tokens last left what was sent.

    Never more than the protocol allows: see the limits in `wire/link_session.py`.
    """

    def __init__(self) -> None:
        self.tree_no = 0
        self.base_position = 0
        self.next_index = 2  # as if something had been sent before: numbers begin with 1
        self.num_unverified = 0
        """Vertices sent and still alive."""
        self._num_verdicts = 0
        self._num_sent = 0
        self._stamp = 0  # like tree_no, but never used twice

    def has(self, vertex: LocalVertex) -> bool:
        """Whether it was sent in this tree; the vertex at which the tree starts was."""
        return vertex.sent_in == self._stamp

    @property
    def is_full(self) -> bool:
        return self.next_index > LAST_TREE_INDEX

    def begin(self, root: LocalVertex, base_position: int) -> None:
        """The next tree, at `root`; one of which nothing was sent uses up no number."""
        if self.next_index > 1:
            self.tree_no += 1
        self.next_index = 1
        self.num_unverified = 0
        self.base_position = base_position
        self._stamp += 1
        root.index, root.sent_in = 0, self._stamp

    def room(self, limit: int, max_unverified: int) -> int:
        """How many of `limit` vertices may be sent now; at most 0 for none."""
        return min(
            limit,
            max_unverified - self.num_unverified,
            max_unverified * (self._num_verdicts + self.tree_no) - self._num_sent,
            LAST_TREE_INDEX + 1 - self.next_index,
        )

    def send(self, vertices: Sequence[LocalVertex]) -> int:
        """Give the vertices their indices, and return the first."""
        first_index = self.next_index
        for index, vertex in enumerate(vertices, first_index):
            vertex.index, vertex.sent_in = index, self._stamp
        self.next_index += len(vertices)
        self._num_sent += len(vertices)
        self.num_unverified += len(vertices)
        return first_index

    def verdict(self) -> None:
        self._num_verdicts += 1

    def new_link(self) -> None:
        """The counts of the protocol begin anew, and so do the numbers at the next `begin`."""
        self._num_verdicts = self._num_sent = self.tree_no = 0
        self.next_index = 2
