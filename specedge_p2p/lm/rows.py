"""What every implementation of the port checks before it writes a row; no tensors."""

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from specedge_p2p.lm.ports import MAX_TAIL_SLOTS, ModelInfo, Rows


class CacheState(Protocol):
    """How many rows a sequence has."""

    @property
    def num_prefix(self) -> int: ...

    @property
    def num_tail(self) -> int: ...


def visible_slots(visible: npt.NDArray[np.uint64], num_slots: int) -> npt.NDArray[np.bool_]:
    """Bool [T, num_slots] of the bitmask [T, W]; bits past the last word are off."""
    octets = np.ascontiguousarray(visible.astype("<u8", copy=False)).view(np.uint8)
    bits = np.unpackbits(octets, axis=1, bitorder="little").astype(np.bool_)
    if bits.shape[1] < num_slots:
        bits = np.pad(bits, ((0, 0), (0, num_slots - bits.shape[1])))
    return bits[:, :num_slots]


def check_batch(batch: Sequence[Rows], info: ModelInfo) -> None:
    """Raise ValueError for a batch that names a sequence twice or is empty."""
    if not batch:
        raise ValueError("a batch has at least one entry")
    if len({rows.sequence for rows in batch}) != len(batch):
        raise ValueError("a batch names each sequence once")
    for rows in batch:
        _check_columns(rows, info)


def _check_columns(rows: Rows, info: ModelInfo) -> None:
    num_rows = len(rows.token_ids)
    if num_rows == 0 or rows.token_ids.shape != rows.positions.shape or rows.token_ids.ndim != 1:
        raise ValueError("token_ids and positions are two columns of the same length, not empty")
    if not 0 <= rows.num_outputs <= num_rows:
        raise ValueError(f"num_outputs {rows.num_outputs} of {num_rows} rows")
    if rows.token_ids.min() < 0 or rows.token_ids.max() >= info.vocab_size:
        raise ValueError(f"a token lies outside the vocabulary of {info.vocab_size}")
    if rows.positions.min() < 0 or rows.positions.max() >= info.max_context:
        raise ValueError(f"a position lies outside the context of {info.max_context}")


def check_rows(rows: Rows, state: CacheState) -> None:
    """Raise ValueError for rows that may not follow what the sequence holds already."""
    num_rows = len(rows.token_ids)
    if rows.visible is None:
        if state.num_tail:
            raise ValueError("causal rows need an empty tail")
        if rows.positions[0] != state.num_prefix or (np.diff(rows.positions) != 1).any():
            raise ValueError("causal rows continue the prefix position by position")
        return
    num_slots = state.num_tail + num_rows
    if num_slots > MAX_TAIL_SLOTS:
        raise ValueError(f"a tail has at most {MAX_TAIL_SLOTS} slots, {num_slots} wanted")
    if rows.visible.ndim != 2 or len(rows.visible) != num_rows or rows.visible.dtype != np.uint64:
        raise ValueError("visible is uint64 [T, W]")
    seen = visible_slots(rows.visible, max(num_slots, rows.visible.shape[1] * 64))
    own = np.arange(state.num_tail, num_slots)
    last = seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
    if not seen[np.arange(num_rows), own].all():
        raise ValueError("a row must see itself")
    if (last > own).any():
        raise ValueError("a row sees a slot that is written after it")


def check_compaction(num_tail: int, commit: Collection[int], keep: Collection[int]) -> None:
    """Raise ValueError for slots that do not exist or are named twice."""
    slots = [*commit, *keep]
    if len(set(slots)) != len(slots) or any(not 0 <= slot < num_tail for slot in slots):
        raise ValueError(f"commit and keep name different slots below {num_tail}")
