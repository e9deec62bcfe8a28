"""Which rows one session has in the cache of the engine's own draft model. No model in here.

Between steps there is a prefix alone: rows of committed tokens from position 0 on, often fewer than
are committed, at most all of them. In a step the tail holds, first, the *chain* of the committed
tokens that the prefix lacks, the root last, and then rows of expanded vertices of the session's
own tree. Every row of a vertex sees the whole chain and its ancestors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specedge_p2p.lm.ports import Rows
from specedge_p2p.tree.attention import pack_masks
from specedge_p2p.tree.binding import BoundRows


@dataclass(frozen=True, slots=True)
class Spread:
    """What a level writes for one session: the chain, then rows that need no output, then others.

    Args:
        chain: committed tokens without a row, the root last; empty where the root has one.
        known: bound rows that were expanded before and lack a row, ascending.
        new: bound rows to expand, ascending; the root is among them where it was never expanded,
            and is then written with the chain.
    """

    chain: tuple[int, ...]
    known: tuple[int, ...]
    new: tuple[int, ...]


class OwnRows:
    """One session's rows."""

    def __init__(self) -> None:
        self.num_prefix = 0
        self._num_chain = 0
        self._slots: dict[int, int] = {}
        self._masks: list[int] = []
        """By slot: bit j says that the row sees slot j."""

    @property
    def has_tail(self) -> bool:
        return bool(self._masks)

    @property
    def num_committed(self) -> int:
        """Committed tokens that have a row, in the prefix or in the tail."""
        return self.num_prefix + self._num_chain

    def has_row(self, vertex: int) -> bool:
        return vertex in self._slots

    def plan(self, sequence: int, spread: Spread, bound: BoundRows, vertices: list[int]) -> Rows:
        """The rows of a spread; nothing changes here until `written`.

        Args:
            sequence: the model's handle.
            spread: what to write.
            bound: the session's rows.
            vertices: the own tree's vertex of each of them.
        """
        rows = [row for row in (*spread.known, *spread.new) if row]
        masks = self._new_masks(spread, rows, bound, vertices)
        depths, token_ids = bound.depths, bound.token_ids
        first = self.num_committed
        root_position = first + len(spread.chain) - 1
        positions = [first + i for i in range(len(spread.chain))]
        positions += [root_position + depths[row] for row in rows]
        return Rows(
            sequence=sequence,
            token_ids=np.array([*spread.chain, *[token_ids[row] for row in rows]], np.int32),
            positions=np.array(positions, np.int32),
            visible=pack_masks(masks, len(self._masks) + len(masks)),
            num_outputs=len(spread.new),
        )

    def written(self, spread: Spread, bound: BoundRows, vertices: Sequence[int]) -> None:
        """The forward was made; the same arguments, every expanded row with its vertex."""
        rows = [row for row in (*spread.known, *spread.new) if row]
        masks = self._new_masks(spread, rows, bound, vertices)
        self._num_chain += len(spread.chain)
        first_slot = len(self._masks) + len(spread.chain)
        self._masks += masks
        self._slots |= {vertices[row]: first_slot + i for i, row in enumerate(rows)}

    def written_causal(self, num_rows: int) -> None:
        self.num_prefix += num_rows

    def keep(self, path: Sequence[int]) -> tuple[int, ...]:
        """The tail slots that become prefix when `path` was committed; the rest is forgotten."""
        slots = list(range(self._num_chain))
        for vertex in path:
            if vertex not in self._slots:
                break
            slots.append(self._slots[vertex])
        self.num_prefix += len(slots)
        self._num_chain, self._slots, self._masks = 0, {}, []
        return tuple(slots)

    def _new_masks(
        self, spread: Spread, rows: Sequence[int], bound: BoundRows, vertices: Sequence[int]
    ) -> list[int]:
        """Masks of the chain and of rows whose parents have slots or stand before them."""
        first_slot, num_chain = len(self._masks), len(spread.chain)
        masks = [(2 << i) - 1 for i in range(num_chain)]
        root_mask = (1 << (self._num_chain or num_chain)) - 1
        parents = bound.parents
        by_row = {0: root_mask}
        for slot, row in enumerate(rows, first_slot + num_chain):
            parent = parents[row]
            seen = by_row.get(parent)
            if seen is None:
                seen = self._masks[self._slots[vertices[parent]]]
            by_row[row] = seen | 1 << slot
            masks.append(by_row[row])
        return masks
