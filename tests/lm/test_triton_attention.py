"""The kernel in Triton's interpreter (on a GPU where there is one) against a dense softmax."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specedge_p2p.lm.flat_plan import (
    FlatShape,
    buffer_size,
    column_spans,
    columns_of,
    fill,
    shape_of,
)
from specedge_p2p.lm.kv_cache import CacheShape, KvCache
from specedge_p2p.lm.pages import PAGE_ROWS, CachedSequence
from specedge_p2p.lm.ports import Rows, SamplingParams
from specedge_p2p.lm.rows import visible_slots
from specedge_p2p.lm.tree_attention import PlannedRows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if DEVICE.type == "cpu" and version("triton") < "3.9":
    pytest.skip("this triton's interpreter knows no numpy 2.4", allow_module_level=True)
from specedge_p2p.lm import triton_attention  # noqa: E402 - where triton is there
from specedge_p2p.lm.triton_attention import (  # noqa: E402 - where triton is there
    DevicePlan,
    TritonAttention,
    rows_of_tile,
)

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    """The interpreter runs them one by one."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setattr(triton_attention, "NUM_PROGRAMS", 16)
        yield


def random_entry(
    rng: np.random.Generator, first: int, pages: Sequence[int], sizes: tuple[int, int, int]
) -> PlannedRows:
    """Prefix rows, older tail slots, and new rows of a random tree; causal where slots are -1."""
    num_prefix, num_slots, num_rows = sizes
    is_causal = num_slots < 0
    state = CachedSequence(GREEDY, bytes(16), num_prefix, max(0, num_slots))
    state.extend(pages)
    positions = np.arange(num_prefix, num_prefix + num_rows, dtype=np.int32)
    ids = rng.integers(0, 50, num_rows).astype(np.int32)
    if is_causal:
        return PlannedRows(Rows(0, ids, positions, None, 1), state, first)
    num_slots = state.num_tail + num_rows
    seen = np.tril(rng.random((num_slots, num_slots)) < 0.3)[-num_rows:]
    seen[np.arange(num_rows), state.num_tail + np.arange(num_rows)] = True
    bits = np.zeros((num_rows, -(-num_slots // 64) * 64), np.uint8)
    bits[:, :num_slots] = seen
    words = np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    return PlannedRows(Rows(0, ids, positions, words, num_rows), state, first)


def dense(cache: KvCache, entries: Sequence[PlannedRows], query: Tensor, scaling: float) -> Tensor:
    """[N, Hq, V] in float64, entry by entry, from the cache after the write."""
    keys, values = (tensor.double() for tensor in cache.of_layer(1))
    outputs = []
    for entry in entries:
        state, num_rows = entry.sequence, entry.num_rows
        seen = np.ones((num_rows, entry.num_visible), bool)
        if entry.rows.visible is None:
            seen[:, state.num_prefix :] = np.tri(num_rows, dtype=bool)
        else:
            seen[:, state.num_prefix :] = visible_slots(
                entry.rows.visible, state.num_tail + num_rows
            )
        rows = torch.from_numpy(state.physical[: entry.num_visible]).to(keys.device)
        group = query.shape[0] // keys.shape[0]
        own = query[:, entry.first : entry.first + num_rows].double()
        key = keys[:, rows].repeat_interleave(group, 0).transpose(1, 2)
        value = values[:, rows].repeat_interleave(group, 0)
        scores = (own @ key * scaling).masked_fill(
            ~torch.from_numpy(seen).to(keys.device), -torch.inf
        )
        outputs.append((scores.softmax(-1) @ value).transpose(0, 1))
    return torch.cat(outputs)


def on_device(host: np.ndarray, shape: FlatShape) -> DevicePlan:
    buffer = torch.from_numpy(host).to(DEVICE)
    return DevicePlan(*(buffer[span] for span in column_spans(shape)))


# Prefixes around the borders of pages and blocks, older tail slots (-1: a prompt chunk), new rows.
SIZES = st.tuples(
    st.sampled_from([0, 1, 15, 16, 17, 63, 64, 65, 130]), st.integers(-1, 40), st.integers(1, 40)
)


def check(
    sizes: Sequence[tuple[int, int, int]],
    heads: tuple[int, int],
    dims: tuple[int, int],
    dtype: torch.dtype,
    padding: int = 0,
    seed: int = 0,
) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    num_pages = [-(-(prefix + max(0, slots) + rows) // PAGE_ROWS) for prefix, slots, rows in sizes]
    free = rng.permutation(sum(num_pages) + 3).tolist()
    scratch_row = free.pop() * PAGE_ROWS
    entries: list[PlannedRows] = []
    for size, pages in zip(sizes, num_pages, strict=True):
        first = sum(entry.num_rows for entry in entries)
        entries.append(random_entry(rng, first, [free.pop() for _ in range(pages)], size))
    group, num_kv_heads = heads
    tile_rows = rows_of_tile(group, dtype)
    least = shape_of(entries, tile_rows)
    shape = FlatShape(
        least.num_rows + padding,
        least.num_tiles + padding,
        least.num_outputs + padding,
        least.num_words * (1 + padding),
        least.num_pages + padding,
    )
    host = np.full(buffer_size(shape), 77, np.int32)  # what an older step left
    fill(columns_of(host, shape), entries, shape.num_words, tile_rows, scratch_row)
    cache = KvCache(
        CacheShape(2, num_kv_heads, *dims), (sum(num_pages) + 3) * PAGE_ROWS, dtype, DEVICE
    )
    rows = torch.arange((sum(num_pages) + 3) * PAGE_ROWS, device=DEVICE)
    cache.write(1, rows, *(torch.randn(num_kv_heads, len(rows), d).to(DEVICE, dtype) for d in dims))
    # as transformers hands it over: rows before heads, seen through a transposition
    query = torch.randn(shape.num_rows, group * num_kv_heads, dims[0]).to(DEVICE, dtype)
    query = query.transpose(0, 1)
    new = [torch.randn(num_kv_heads, shape.num_rows, d).to(DEVICE, dtype) for d in dims]
    attention = TritonAttention(cache, on_device(host, shape), group)
    output = attention.attend(1, query, new[0], new[1], dims[0] ** -0.5)
    assert output.shape == (shape.num_rows, group * num_kv_heads, dims[1])
    assert output.dtype == dtype
    assert output.isfinite().all()
    expected = dense(cache, entries, query, dims[0] ** -0.5)
    bound = 2e-5 if dtype == torch.float32 else 0.03
    worst = (output[: least.num_rows].double() - expected).abs().max()
    assert worst < bound, (worst, sizes)
    assert (output[: least.num_rows].double() - expected.roll(1, 0)).abs().max() > 2 * bound


@settings(max_examples=15)
@given(
    sizes=st.lists(SIZES, min_size=1, max_size=3).filter(lambda all_: sum(s[2] for s in all_) > 1),
    heads=st.sampled_from([(1, 2), (2, 1), (5, 1), (4, 2)]),
    dims=st.sampled_from([(8, 8), (32, 32), (24, 40)]),
    padding=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_any_batch_equals_a_dense_softmax(
    sizes: list[tuple[int, int, int]],
    heads: tuple[int, int],
    dims: tuple[int, int],
    padding: int,
    seed: int,
) -> None:
    check(sizes, heads, dims, torch.float32, padding, seed)


@pytest.mark.parametrize("num_prefix", [1000, 2049])
def test_a_long_context_is_split(num_prefix: int) -> None:
    check([(num_prefix, 5, 9), (40, 0, 1)], (2, 1), (16, 16), torch.float32)


def test_two_bytes_are_as_good_as_their_inputs() -> None:
    """The interpreter multiplies the bits of bfloat16 as integers, so it is shown float16."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    check([(100, 3, 9), (33, -1, 20)], (5, 2), (32, 32), dtype)


def test_a_tail_of_many_words() -> None:
    check([(10, 300, 8)], (2, 1), (16, 16), torch.float32)


SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227}
"""What a program may have, by compute capability: A100, RTX 30, RTX 40, H100."""


@pytest.mark.timeout(900)
def test_the_kernels_compile_for_gpus_that_are_not_here() -> None:
    """Down to machine code, by Triton's own assembler, with the blocks that a launch would take."""
    code = textwrap.dedent("""
        import torch
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile
        from specedge_p2p.lm.triton_attention import blocks_for, rows_of_tile
        from specedge_p2p.lm.triton_kernels import attend_split, join_splits

        def build(kernel, capability, dtype, dim, group=5):
            blocks, rows = blocks_for(dtype, dim), rows_of_tile(group, dtype)
            sizes = dict(NUM_WORDS=1, GROUP=group, TILE_ROWS=rows, KEY_DIM=dim, VALUE_DIM=dim,
                         BLOCK_M=blocks.num_queries, BLOCK_N=blocks.num_keys, BLOCK_D=dim,
                         BLOCK_V=dim, PAGE=16, WORD=32, NUM_SPLITS=8, query_dim_stride=1)
            kind = "*fp32" if dtype == torch.float32 else "*bf16"
            types = dict.fromkeys(("query", "keys", "values", "output"), kind)
            types |= dict(sums="*fp32", scales="*fp32", scaling="fp32", num_rows="i32",
                          num_heads="i32")
            names = kernel.arg_names
            signature = {n: "i32" if "stride" in n else "*i32" for n in names} | types
            signature = {n: "constexpr" if n in sizes else signature[n] for n in names}
            params = {p.name: p for p in kernel.params}
            assert params["num_rows"].do_not_specialize and params["num_heads"].do_not_specialize
            aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
                       if n not in sizes and ("*" in signature[n] or "stride" in n)}
            source = ASTSource(fn=kernel, signature=signature, attrs=aligned, constexprs={
                (i,): sizes[n] for i, n in enumerate(names) if n in sizes})
            options = dict(num_stages=blocks.num_stages, num_warps=blocks.num_warps)
            return compile(source, target=GPUTarget("cuda", capability, 32), options=options)

        for capability in (80, 86, 89, 90):
            for dtype in (torch.bfloat16, torch.float32):
                for dim in (128, 256):
                    for kernel in (attend_split, join_splits):
                        done = build(kernel, capability, dtype, dim)
                        print(capability, len(done.asm["cubin"]), done.metadata.shared)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    sizes = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(sizes) == 4 * 2 * 2 * 2, done.stderr
    for capability, cubin, shared in sizes:
        assert cubin > 0
        assert shared <= 1024 * SHARED_KIB[capability], sizes


@given(
    st.builds(
        FlatShape,
        num_rows=st.integers(1, 700),
        num_tiles=st.integers(1, 99),
        num_outputs=st.integers(0, 700),
        num_words=st.integers(1, 64),
        num_pages=st.integers(1, 3000),
    )
)
def test_no_column_lies_so_that_the_kernel_is_compiled_anew(shape: FlatShape) -> None:
    spans = column_spans(shape)
    assert all(span.start % 4 == 0 for span in spans)
    assert all(one.stop <= next_.start < one.stop + 4 for one, next_ in pairwise(spans))
    columns = columns_of(np.arange(buffer_size(shape), dtype=np.int32), shape)
    assert columns.tail.shape == (shape.num_rows * shape.num_words,)
    assert columns.pages[-1] == buffer_size(shape) - 1
