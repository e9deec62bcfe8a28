"""Which tree rows see which: bitmasks over the slots of a sequence's tail.

Bit j of a row's mask says that the row sees slot j; word w holds the slots from 64 w on. Rows see
themselves, their ancestors in the tail and, without a bit, the whole prefix.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WORD_BITS = 64
Masks = npt.NDArray[np.uint64]


def bitmask_words(num_slots: int) -> int:
    """Words that hold one bit for each of `num_slots` slots; at least one."""
    return max(1, -(-num_slots // WORD_BITS))


def ancestor_rows(
    parents: npt.NDArray[np.int32], first_slot: int = 0, base: Masks | None = None
) -> Masks:
    """Masks of new rows, uint64 [T, bitmask_words(first_slot + T)].

    Args:
        parents: int32 [T], slot of each row's parent, -1 for rows that see only the prefix.
        first_slot: slot of the first new row; the others follow.
        base: masks of the slots below first_slot, [first_slot, any width]; may be left out while
            no parent lies there.

    Raises ValueError for a parent that does not stand before its child or has no mask.
    """
    num_base = 0 if base is None else len(base)
    masks = np.zeros((len(parents), bitmask_words(first_slot + len(parents))), dtype=np.uint64)
    for row, parent in enumerate(parents.tolist()):
        slot = first_slot + row
        if parent >= first_slot and parent < slot:
            masks[row] = masks[parent - first_slot]
        elif 0 <= parent < min(num_base, first_slot) and base is not None:
            masks[row, : base.shape[1]] = base[parent]
        elif parent != -1:
            raise ValueError(f"slot {slot} cannot have parent {parent}")
        masks[row, slot // WORD_BITS] |= np.uint64(1 << slot % WORD_BITS)
    return masks


def append_rows(base: Masks, rows: Masks) -> Masks:
    """All masks of a tail after `rows` were written to it; both are widened to the wider one."""
    width = max(base.shape[1], rows.shape[1])
    joined = np.zeros((len(base) + len(rows), width), dtype=np.uint64)
    joined[: len(base), : base.shape[1]] = base
    joined[len(base) :, : rows.shape[1]] = rows
    return joined


def compact_rows(masks: Masks, keep: Sequence[int]) -> Masks:
    """Masks of the slots `keep`, renumbered in that order.

    Slots that are not kept have left the tail: dropped, or seen by everything as prefix.
    """
    visible = dense(masks)[np.ix_(list(keep), list(keep))] if len(keep) else np.zeros((0, 0), bool)
    return _packed(visible)


def dense(masks: Masks) -> npt.NDArray[np.bool_]:
    """The same as booleans, [T, 64 W]."""
    bits = np.unpackbits(masks.astype("<u8").view(np.uint8), axis=1, bitorder="little")
    return bits.astype(bool)


def _packed(visible: npt.NDArray[np.bool_]) -> Masks:
    words = bitmask_words(visible.shape[1])
    padded = np.zeros((len(visible), words * WORD_BITS), dtype=bool)
    padded[:, : visible.shape[1]] = visible
    packed = np.packbits(padded, axis=1, bitorder="little")
    return packed.view("<u8").astype(np.uint64).reshape(len(visible), words)
