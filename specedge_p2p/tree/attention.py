"""Which tree rows see which: bitmasks over the slots of a sequence's tail.

A mask is an int; bit j says that the row sees slot j. Rows see themselves, their ancestors in the
tail and, without a bit, the whole prefix.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WORD_BITS = 64


def ancestor_masks(parents: Sequence[int]) -> list[int]:
    """Masks of rows that take the slots from 0 on.

    Args:
        parents: slot of each row's parent, -1 for rows that see only the prefix.

    Raises ValueError for a parent that does not stand before its child.
    """
    masks: list[int] = []
    for slot, parent in enumerate(parents):
        if not -1 <= parent < slot:
            raise ValueError(f"slot {slot} cannot have parent {parent}")
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << slot)
    return masks


def pack_masks(masks: Sequence[int], num_slots: int) -> npt.NDArray[np.uint64]:
    """As uint64 [T, W]: word w holds the slots from 64 w on, W words hold `num_slots`."""
    num_words = max(1, -(-num_slots // WORD_BITS))
    if num_words == 1:
        return np.array(masks, np.uint64).reshape(-1, 1)
    packed = b"".join([mask.to_bytes(8 * num_words, "little") for mask in masks])
    return np.frombuffer(packed, "<u8").astype(np.uint64).reshape(len(masks), num_words)
