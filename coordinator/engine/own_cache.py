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
from specedge_p2p.tree.attention import Masks, ancestor_rows, append_rows
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
        self._masks: Masks | None = None

    @property
    def has_tail(self) -> bool:
        return self._masks is not None

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
        positions = [self.num_committed + i for i in range(len(spread.chain))]
        root_position = self.num_committed + len(spread.chain) - 1
        positions += (root_position + bound.depths[rows]).tolist()
        return Rows(
            sequence=sequence,
            token_ids=np.array([*spread.chain, *bound.token_ids[rows].tolist()], dtype=np.int32),
            positions=np.array(positions, dtype=np.int32),
            visible=ancestor_rows(
                self._parents(spread, rows, bound, vertices), self._num_slots, self._masks
            ),
            num_outputs=len(spread.new),
        )

    def written(self, spread: Spread, rows: Rows, vertices: Sequence[int]) -> None:
        """The forward was made.

        Args:
            spread: what was planned.
            rows: the plan.
            vertices: of `spread.known` and `spread.new`, the root's left out.
        """
        assert rows.visible is not None  # noqa: S101 - tree rows are never causal
        masks = self._masks
        self._masks = rows.visible if masks is None else append_rows(masks, rows.visible)
        self._num_chain += len(spread.chain)
        first_slot = self._num_slots - len(vertices)
        self._slots |= {vertex: first_slot + i for i, vertex in enumerate(vertices)}

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
        self._num_chain, self._slots, self._masks = 0, {}, None
        return tuple(slots)

    @property
    def _num_slots(self) -> int:
        return 0 if self._masks is None else len(self._masks)

    def _parents(
        self, spread: Spread, rows: Sequence[int], bound: BoundRows, vertices: list[int]
    ) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """Slot of each new row's parent, -1 where it sees the prefix alone."""
        first_slot, num_chain = self._num_slots, len(spread.chain)
        slot_of = {0: (self._num_chain or num_chain) - 1}
        slot_of |= {row: first_slot + num_chain + i for i, row in enumerate(rows)}
        parents = list(range(-1, num_chain - 1))
        for row in rows:
            parent = int(bound.parents[row])
            slot = slot_of.get(parent)
            parents.append(self._slots[vertices[parent]] if slot is None else slot)
        return np.array(parents, dtype=np.int32)
