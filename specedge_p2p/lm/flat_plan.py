"""What a forward on a GPU needs to know, as one flat int32 array of fixed layout; no tensors.

All that changes from step to step lies in one buffer at a fixed place: it is filled on the host,
crosses in one copy, and a captured graph finds every column where it was. Rows that only pad a step
up to a captured shape belong to no tile: they are computed, see nothing and write to the page
`scratch_row`, which no sequence has.

Row i sees the cached rows of its sequence before `sees[i]`, and beyond the prefix those whose bit
in `tail` is set: one rule for prompt chunks, trees and plain rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from specedge_p2p.lm.pages import PAGE_ROWS
from specedge_p2p.lm.ports import MAX_TAIL_SLOTS
from specedge_p2p.lm.tree_attention import PlannedRows

Column = npt.NDArray[np.int32]
WORD_BITS = 32
MAX_WORDS = MAX_TAIL_SLOTS // WORD_BITS
ALIGNED_ELEMENTS = 4
"""Columns begin at multiples of 16 bytes: for each other alignment kernels are compiled anew."""


@dataclass(frozen=True, slots=True)
class FlatShape:
    """The sizes of a plan's columns.

    Args:
        num_rows: N, on the flat axis.
        num_tiles: T, blocks of rows of one entry that are attended together.
        num_outputs: O, rows whose logits are wanted.
        num_words: W, words of a row's tail mask.
        num_pages: P, over all entries.
    """

    num_rows: int
    num_tiles: int
    num_outputs: int
    num_words: int
    num_pages: int


@dataclass(frozen=True, slots=True)
class FlatColumns:
    """Views of one buffer, by name; on the host and, by `column_spans`, on the device.

    Tiles name their entry's pages, prefix and last visible row themselves, so that there is no
    column of entries.
    """

    ids: Column  # [N]
    positions: Column  # [N]
    new_rows: Column  # [N] physical rows that the keys and values are written to
    sees: Column  # [N]
    tail: Column  # [N * W]
    outputs: Column  # [O]
    tile_first: Column  # [T] flat row
    tile_rows: Column  # [T] 0 where the tile only pads
    tile_page: Column  # [T] where the entry's pages begin in `pages`
    tile_prefix: Column  # [T]
    tile_end: Column  # [T] cached rows that some row of the tile sees lie before it
    pages: Column  # [P]


def column_spans(shape: FlatShape) -> list[slice]:
    """Where the columns lie in a buffer, in order."""
    rows, tiles = shape.num_rows, shape.num_tiles
    sizes = [rows, rows, rows, rows, rows * shape.num_words, shape.num_outputs]
    sizes += [tiles] * 5 + [shape.num_pages]
    starts = accumulate((_aligned(size) for size in sizes), initial=0)
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]


def columns_of(buffer: Column, shape: FlatShape) -> FlatColumns:
    return FlatColumns(*(buffer[span] for span in column_spans(shape)))


def buffer_size(shape: FlatShape) -> int:
    return int(column_spans(shape)[-1].stop)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED_ELEMENTS) * ALIGNED_ELEMENTS


def shape_of(entries: Sequence[PlannedRows], tile_rows: int) -> FlatShape:
    """The least shape that holds the entries, `tile_rows` rows to a tile."""
    tails = [0 if e.rows.visible is None else e.sequence.num_tail + e.num_rows for e in entries]
    return FlatShape(
        num_rows=sum(entry.num_rows for entry in entries),
        num_tiles=sum(-(-entry.num_rows // tile_rows) for entry in entries),
        num_outputs=sum(entry.rows.num_outputs for entry in entries),
        num_words=max(1, -(-max(tails) // WORD_BITS)),
        num_pages=sum(-(-entry.num_visible // PAGE_ROWS) for entry in entries),
    )


def fill(
    columns: FlatColumns,
    entries: Sequence[PlannedRows],
    num_words: int,
    tile_rows: int,
    scratch_row: int,
) -> None:
    """Write a plan into columns of its shape or a larger one."""
    for column in (columns.ids, columns.positions, columns.sees, columns.outputs):
        column[:] = 0
    columns.tile_rows[:] = 0
    columns.new_rows[:] = scratch_row
    tails = columns.tail.reshape(-1, num_words)
    tails[:] = 0
    tile = page = output = 0
    for entry in entries:
        span = slice(entry.first, entry.first + entry.num_rows)
        state = entry.sequence
        columns.ids[span] = entry.rows.token_ids
        columns.positions[span] = entry.rows.positions
        columns.new_rows[span] = state.physical[state.num_rows : entry.num_visible]
        _fill_seen(columns.sees[span], tails[span], entry)
        num_outputs = entry.rows.num_outputs
        columns.outputs[output : output + num_outputs] = range(span.stop - num_outputs, span.stop)
        output += num_outputs
        for first in range(span.start, span.stop, tile_rows):
            last = min(first + tile_rows, span.stop)
            columns.tile_first[tile], columns.tile_rows[tile] = first, last - first
            columns.tile_page[tile], columns.tile_prefix[tile] = page, state.num_prefix
            is_causal = entry.rows.visible is None
            columns.tile_end[tile] = columns.sees[last - 1] if is_causal else entry.num_visible
            tile += 1
        num_pages = -(-entry.num_visible // PAGE_ROWS)
        columns.pages[page : page + num_pages] = state.pages[:num_pages]
        page += num_pages


def _fill_seen(sees: Column, tails: Column, entry: PlannedRows) -> None:
    visible = entry.rows.visible
    sees[:] = entry.sequence.num_prefix
    if visible is None:
        sees += np.arange(1, entry.num_rows + 1, dtype=np.int32)
        return
    words = np.ascontiguousarray(visible.astype("<u8", copy=False)).view("<i4")
    num_words = min(words.shape[1], tails.shape[1])
    tails[:, :num_words] = words[:, :num_words]
