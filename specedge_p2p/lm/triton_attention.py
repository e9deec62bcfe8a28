"""Attention of tree rows over the paged cache as a Triton kernel: nothing is gathered or padded.

One program attends a tile, some rows of one entry with all query heads of one key-value head, over
one split of the entry's cached rows, and leaves a partial softmax; a second kernel puts the splits
together (flash decoding, https://pytorch.org/blog/flash-decoding). Pages are read where they lie
(paged attention, arXiv 2309.06180). Within the prefix a row sees what lies before `sees`; in the
tail its ancestors, by a bit each. Arithmetic is in float32, products of float32 in full precision.

Only for CUDA: a CPU has `tree_attention.PagedAttention`. Triton's interpreter runs it anywhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specedge_p2p.lm.flat_plan import WORD_BITS
from specedge_p2p.lm.kv_cache import KvCache
from specedge_p2p.lm.pages import PAGE_ROWS
from specedge_p2p.lm.ports import ModelError
from specedge_p2p.lm.triton_kernels import attend_split, join_splits

NUM_PROGRAMS = 528
"""Splits are made until there are about as many programs: four for every processor of an H100."""
MAX_SPLITS = 32
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """`FlatColumns` on the device, int32 each."""

    ids: Tensor
    positions: Tensor
    new_rows: Tensor
    sees: Tensor
    tail: Tensor
    outputs: Tensor
    tile_first: Tensor
    tile_rows: Tensor
    tile_page: Tensor
    tile_prefix: Tensor
    tile_end: Tensor
    pages: Tensor


@dataclass(frozen=True, slots=True)
class Blocks:
    """What a program holds at once: scores of `num_queries` times `num_keys`."""

    num_queries: int
    num_keys: int
    num_stages: int
    num_warps: int


def blocks_for(dtype: torch.dtype, dim: int) -> Blocks:
    """Blocks that fit the 99 KiB of shared memory that the smaller GPUs have, and the registers.

    Products of float32 in full precision know no tensor cores: their operands fill registers.
    """
    if dtype == torch.float32:
        return Blocks(32, 32 if dim <= 64 else 16, 2, 4 if dim <= 128 else 8)
    return Blocks(64, 64, 3, 4) if dim <= 128 else Blocks(64, 32, 2, 8)


def rows_of_tile(heads_per_kv: int, dtype: torch.dtype) -> int:
    """Rows that one program attends."""
    return max(1, blocks_for(dtype, 0).num_queries // heads_per_kv)


class TritonAttention:
    """The attention of one forward; implements `tree_attention.LayerAttention`.

    Args:
        cache: the paged cache.
        plan: see `flat_plan.py`; may be filled anew between two forwards of the same shape.
    """

    def __init__(self, cache: KvCache, plan: DevicePlan, heads_per_kv: int) -> None:
        self._cache, self._plan = cache, plan
        self._heads_per_kv = heads_per_kv
        self._num_words = len(plan.tail) // len(plan.sees)
        self._new_rows = plan.new_rows.long()

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        window: int | None = None,
    ) -> Tensor:
        if window is not None:
            raise ModelError("the kernel knows no sliding window")
        self._cache.write(layer, self._new_rows, keys, values)
        cached_keys, cached_values = self._cache.of_layer(layer)
        num_heads, num_rows, key_dim = query.shape
        num_kv_heads, value_dim = num_heads // self._heads_per_kv, cached_values.shape[2]
        plan, num_tiles = self._plan, len(self._plan.tile_first)
        blocks = blocks_for(cached_keys.dtype, max(key_dim, value_dim))
        tile_rows = rows_of_tile(self._heads_per_kv, cached_keys.dtype)
        num_splits = _num_splits(num_tiles * num_kv_heads)
        # Rows that pad belong to no tile: their output must be finite, so it is cleared.
        sums = torch.zeros(
            (num_splits, num_rows, num_heads, value_dim), dtype=torch.float32, device=query.device
        )
        scales = torch.zeros(
            (2, num_splits, num_rows, num_heads), dtype=torch.float32, device=query.device
        )
        attend_split[(num_tiles, num_kv_heads, num_splits)](
            query,
            cached_keys,
            cached_values,
            sums,
            scales,
            plan.sees,
            plan.tail,
            plan.tile_first,
            plan.tile_rows,
            plan.tile_page,
            plan.tile_prefix,
            plan.tile_end,
            plan.pages,
            scaling * _LOG2_E,
            *query.stride(),
            *cached_keys.stride()[:2],
            *cached_values.stride()[:2],
            num_rows,
            num_heads,
            NUM_WORDS=self._num_words,
            GROUP=self._heads_per_kv,
            TILE_ROWS=tile_rows,
            KEY_DIM=key_dim,
            VALUE_DIM=value_dim,
            BLOCK_M=_block(tile_rows * self._heads_per_kv),
            BLOCK_N=blocks.num_keys,
            BLOCK_D=_block(key_dim),
            BLOCK_V=_block(value_dim),
            PAGE=PAGE_ROWS,
            WORD=WORD_BITS,
            num_stages=blocks.num_stages,
            num_warps=blocks.num_warps,
        )
        output = torch.empty(
            (num_rows, num_heads, value_dim), dtype=query.dtype, device=query.device
        )
        join_splits[(num_rows, num_heads)](
            sums, scales, output, num_rows, num_heads, num_splits, value_dim, _block(value_dim)
        )
        return output


def _num_splits(num_programs: int) -> int:
    """A power of two, so that few kernels are compiled."""
    wanted = max(1, NUM_PROGRAMS // num_programs)
    return min(MAX_SPLITS, 1 << (wanted.bit_length() - 1))


def _block(size: int) -> int:
    """What `tl.dot` takes: a power of two from 16 on."""
    return max(16, 1 << (size - 1).bit_length())
