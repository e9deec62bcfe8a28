"""Which vertices of one session's tree have a row in the draft model's cache, and in which slot.

The prefix of the model's sequence holds rows of committed tokens, from position 0 on, without gaps.
The tail holds rows of expanded vertices: a vertex gets its row in the forward that expands it, so
the ancestors of a row always have rows too. Two things follow and keep this file small:

* after a verdict the rows of the committed path are a prefix of that path;
* where the path's end has no row, nothing below it has one: the tail is empty and the missing
  committed tokens can be written as plain causal rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specedge_p2p.lm.ports import Rows
from specedge_p2p.tree.attention import pack_masks


@dataclass(frozen=True, slots=True)
class Growth:
    """A vertex to expand: one new row."""

    vertex: int
    parent: int
    token_id: int
    position: int


@dataclass(frozen=True, slots=True)
class Compaction:
    """Arguments of `LanguageModel.compact`."""

    commit: tuple[int, ...]
    keep: tuple[int, ...]


class DraftCache:
    """The rows of one sequence. Vertices are the local ids of a `GrowingTree`."""

    def __init__(self) -> None:
        self.num_prefix = 0
        self._rows: list[Growth] = []  # by slot
        self._slots: dict[int, int] = {}
        self._masks: list[int] = []  # by slot: bit j says that the row sees slot j

    def __len__(self) -> int:
        """Rows in the tail."""
        return len(self._rows)

    def __contains__(self, vertex: object) -> bool:
        return vertex in self._slots

    def plan(self, sequence: int, growths: Sequence[Growth]) -> Rows:
        """The rows that a forward has to write to expand `growths`; parents have rows or are root.

        Nothing changes here until `written`.
        """
        masks = [
            self._parent_mask(growth) | 1 << slot
            for slot, growth in enumerate(growths, len(self._rows))
        ]
        return Rows(
            sequence=sequence,
            token_ids=np.array([growth.token_id for growth in growths], dtype=np.int32),
            positions=np.array([growth.position for growth in growths], dtype=np.int32),
            visible=pack_masks(masks, len(self._rows) + len(growths)),
            num_outputs=len(growths),
        )

    def written(self, growths: Sequence[Growth]) -> None:
        for slot, growth in enumerate(growths, len(self._rows)):
            self._masks.append(self._parent_mask(growth) | 1 << slot)
            self._slots[growth.vertex] = slot
            self._rows.append(growth)

    def commit(self, root: int, token_ids: Sequence[int], *, keep_subtree: bool) -> Compaction:
        """Walk the committed tokens down from `root` and say which slots stay.

        Args:
            root: the root before this commit; its row is in the prefix.
            token_ids: the newly committed tokens.
            keep_subtree: whether the tree below the last of them lives on.
        """
        children = {(row.parent, row.token_id): row.vertex for row in self._rows}
        path: list[int] = []
        vertex = root
        for token_id in token_ids:
            child = children.get((vertex, token_id))
            if child is None:
                break
            path.append(child)
            vertex = child
        whole = keep_subtree and len(path) == len(token_ids)
        kept = self._below(vertex) if whole else []
        compaction = Compaction(
            commit=tuple(self._slots[v] for v in path),
            keep=tuple(self._slots[row.vertex] for row in kept),
        )
        self.num_prefix += len(path)
        self._replace_tail(kept)
        return compaction

    def _below(self, root: int) -> list[Growth]:
        alive = {root}
        kept = []
        for row in self._rows:  # parents stand before children
            if row.parent in alive:
                alive.add(row.vertex)
                kept.append(row)
        return kept

    def _replace_tail(self, rows: Sequence[Growth]) -> None:
        self._rows, self._slots, self._masks = [], {}, []
        self.written(rows)

    def _parent_mask(self, growth: Growth) -> int:
        slot = self._slots.get(growth.parent)
        return 0 if slot is None else self._masks[slot]
