"""The kernels behind `triton_attention.py`, which says what they are for.

Shapes: query [Hq, N, D]; keys and values [Hkv, rows, D] and [Hkv, rows, V] by strides; sums
[splits, N, Hq, V] and scales [2, splits, N, Hq] (largest score, sum of weights) in float32; the
rest are columns of `flat_plan.FlatColumns`. Scores are in base 2: `scaling` holds log2 e.
"""
# Triton reads the signatures: an annotation other than constexpr would mean something to it.
# ruff: noqa: ANN001, ANN201, N803, PLR0913, PLR0915
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import triton
import triton.language as tl


# Integers that a step brings along are not specialised: each 1 and each multiple of 16 would be
# compiled anew.
@triton.jit(do_not_specialize=["num_rows", "num_heads"])
def attend_split(
    query,
    keys,
    values,
    sums,
    scales,
    sees,
    tail,
    tile_first,
    tile_rows,
    tile_page,
    tile_prefix,
    tile_end,
    pages,
    scaling,
    query_head_stride,
    query_row_stride,
    query_dim_stride,
    key_head_stride,
    key_row_stride,
    value_head_stride,
    value_row_stride,
    num_rows,
    num_heads,
    NUM_WORDS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PAGE: tl.constexpr,
    WORD: tl.constexpr,
):
    """Program (tile, kv head, split): GROUP heads of TILE_ROWS rows against a part of the cache."""
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_splits = tl.num_programs(2)
    own_rows = tl.load(tile_rows + tile)
    end = tl.load(tile_end + tile)
    share = tl.cdiv(tl.cdiv(end, num_splits), BLOCK_N) * BLOCK_N
    start = split * share
    stop = tl.minimum(start + share, end)
    if (own_rows > 0) & (start < stop):
        prefix = tl.load(tile_prefix + tile)
        first_page = tl.load(tile_page + tile)
        # 64 bits: a large cache has more than 2**31 elements in a layer
        cached_head = kv_head.to(tl.int64)
        lanes = tl.arange(0, BLOCK_M)
        is_real = (lanes // GROUP < own_rows) & (lanes < TILE_ROWS * GROUP)
        rows = tl.load(tile_first + tile) + lanes // GROUP
        heads = kv_head * GROUP + lanes % GROUP
        dims, value_dims = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
        at = heads * query_head_stride + rows * query_row_stride
        asked = tl.load(
            query + at[:, None] + dims[None, :] * query_dim_stride,
            mask=is_real[:, None] & (dims[None, :] < KEY_DIM),
            other=0.0,
        )
        before = tl.load(sees + rows, mask=is_real, other=0)
        largest = tl.full((BLOCK_M,), -1.0e30, tl.float32)
        weight = tl.zeros((BLOCK_M,), tl.float32)
        total = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
        for block in range(start, stop, BLOCK_N):
            places = block + tl.arange(0, BLOCK_N)
            is_cached = places < stop
            page = tl.load(pages + first_page + places // PAGE, mask=is_cached, other=0)
            physical = page.to(tl.int64) * PAGE + places % PAGE
            key = tl.load(
                keys
                + physical[None, :] * key_row_stride
                + cached_head * key_head_stride
                + dims[:, None],
                mask=is_cached[None, :] & (dims[:, None] < KEY_DIM),
                other=0.0,
            )
            seen = places[None, :] < before[:, None]
            if block + BLOCK_N > prefix:
                slots = places - prefix
                is_slot = is_cached & (slots >= 0) & (slots < NUM_WORDS * WORD)
                words = tl.load(
                    tail + rows[:, None] * NUM_WORDS + slots[None, :] // WORD,
                    mask=is_real[:, None] & is_slot[None, :],
                    other=0,
                )
                seen = seen | (((words >> (slots[None, :] % WORD)) & 1) != 0)
            seen = seen & is_cached[None, :] & is_real[:, None]
            scores = tl.dot(asked, key, input_precision="ieee") * scaling
            scores = tl.where(seen, scores, -1.0e30)
            new_largest = tl.maximum(largest, tl.max(scores, 1))
            # where a row has seen nothing yet all scores are equal: the mask makes them weightless
            weights = tl.where(seen, tl.exp2(scores - new_largest[:, None]), 0.0)
            decay = tl.exp2(largest - new_largest)
            value = tl.load(
                values
                + physical[:, None] * value_row_stride
                + cached_head * value_head_stride
                + value_dims[None, :],
                mask=is_cached[:, None] & (value_dims[None, :] < VALUE_DIM),
                other=0.0,
            )
            part = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            total = total * decay[:, None] + part
            weight = weight * decay + tl.sum(weights, 1)
            largest = new_largest
        place = (split * num_rows + rows) * num_heads + heads
        tl.store(
            sums + place[:, None] * VALUE_DIM + value_dims[None, :],
            total,
            mask=is_real[:, None] & (value_dims[None, :] < VALUE_DIM),
        )
        tl.store(scales + place, largest, mask=is_real)
        tl.store(scales + num_splits * num_rows * num_heads + place, weight, mask=is_real)


@triton.jit(do_not_specialize=["num_rows", "num_heads"])
def join_splits(
    sums,
    scales,
    output,
    num_rows,
    num_heads,
    NUM_SPLITS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Program (row, head): the splits' softmaxes as one. A split without weight counts for none."""
    place = tl.program_id(0) * num_heads + tl.program_id(1)
    num_places = num_rows * num_heads
    splits, dims = tl.arange(0, NUM_SPLITS), tl.arange(0, BLOCK_V)
    largest = tl.load(scales + splits * num_places + place)
    weight = tl.load(scales + (NUM_SPLITS + splits) * num_places + place)
    largest = tl.where(weight > 0, largest, -1.0e30)
    factor = tl.where(weight > 0, tl.exp2(largest - tl.max(largest, 0)), 0.0)
    parts = tl.load(
        sums + (splits[:, None] * num_places + place) * VALUE_DIM + dims[None, :],
        mask=dims[None, :] < VALUE_DIM,
        other=0.0,
    )
    total = tl.sum(parts * factor[:, None], 0)
    divisor = tl.sum(weight * factor, 0)
    result = total / tl.where(divisor > 0, divisor, 1.0)
    tl.store(
        output + place * VALUE_DIM + dims,
        result.to(output.dtype.element_ty),
        mask=dims < VALUE_DIM,
    )
