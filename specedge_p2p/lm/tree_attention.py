"""Attention of tree rows over the paged cache, under transformers' own model code.

All rows of a batch lie flat on one axis of one forward [1, N], whatever sequence they belong to.
transformers hands the new keys and values of every layer to `attend`; a `PagedAttention`, made once
per forward, writes them into the cache, gathers each sequence's rows and attends over them with one
padded call per group of entries of about the same size. Grouped queries are folded into the row
axis, so that keys are read once and never repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from specedge_p2p.lm.kv_cache import CacheShape, KvCache
from specedge_p2p.lm.pages import CachedSequence
from specedge_p2p.lm.ports import ModelError, Rows
from specedge_p2p.lm.rows import visible_slots
from specedge_p2p.lm.windows import MaskBias

ATTENTION_NAME = "specedge_paged_tree"
_SMALL_ENTRY, _LARGE_ENTRY = 16, 64
_UNSUPPORTED = ("softcap", "s_aux")
"""Arguments by which a model asks for an attention that is not computed here."""


class LayerAttention(Protocol):
    """What happens in one layer of one forward."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        window: int | None = None,
    ) -> Tensor:
        """From query [Hq, N, D], keys and values [Hkv, N, D] to the output [N, Hq, Dv].

        `window`: a row sees so many tokens at most, itself included; None: all before it.
        """
        ...


def register_attention() -> str:
    """Make the attention known to transformers; the name to build a model with.

    This imports transformers' model code, see `loader`.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, attend)
    return ATTENTION_NAME


def attend(  # noqa: PLR0913 - transformers calls it so
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layer_attention: LayerAttention | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; `layer_attention` was given to the model's call."""
    del attention_mask  # the plan has its own
    if layer_attention is None:
        raise ModelError("the model does not pass arguments on to its attention layers")
    if unsupported := [name for name in _UNSUPPORTED if kwargs.get(name) is not None]:
        raise ModelError(f"this model's attention needs {', '.join(unsupported)}: not supported")
    if not getattr(module, "is_causal", True):
        raise ModelError("this model's attention is not causal: not supported")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise ModelError("the model does not number its attention layers")
    output = layer_attention.attend(
        layer,
        query[0],
        key[0],
        value[0],
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window or None,
    )
    return output.unsqueeze(0), None


class AttentionProbe:
    """Learns the shapes of a model's layers in a forward of one row, without a cache."""

    def __init__(self) -> None:
        self._shapes: dict[int, tuple[int, int, int, int]] = {}
        self.windows: dict[int, int | None] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        window: int | None = None,
    ) -> Tensor:
        del scaling
        self.windows[layer] = window
        num_query_heads = query.shape[0]
        self._shapes[layer] = (num_query_heads, keys.shape[0], keys.shape[2], values.shape[2])
        return query.new_zeros(query.shape[1], num_query_heads, values.shape[2])

    def result(self) -> tuple[CacheShape, int]:
        """The shape of a row, and query heads per key head. Raises ModelError."""
        shapes = set(self._shapes.values())
        if len(shapes) != 1 or set(self._shapes) != set(range(len(self._shapes))):
            raise ModelError("this model's attention layers differ in shape: not supported")
        num_query_heads, num_kv_heads, key_dim, value_dim = shapes.pop()
        shape = CacheShape(len(self._shapes), num_kv_heads, key_dim, value_dim)
        return shape, num_query_heads // num_kv_heads


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """An entry, its sequence as it was before, and where its first row lies on the flat axis."""

    rows: Rows
    sequence: CachedSequence
    first: int

    @property
    def num_rows(self) -> int:
        return len(self.rows.token_ids)

    @property
    def num_visible(self) -> int:
        return self.sequence.num_rows + self.num_rows


@dataclass(frozen=True, slots=True)
class _Group:
    """Entries attended in one call: B entries, padded to T rows and S cached rows."""

    size: tuple[int, int, int]
    cached: Tensor | slice  # physical rows [B * S]
    bias: MaskBias  # what each of [B, heads_per_kv * T] rows sees of S
    queries: Tensor | None  # flat rows [B * T]; None: all rows, in order
    real: Tensor | None  # which of [B * T] are no padding
    targets: Tensor | None  # the flat rows of those


class PagedAttention:
    """The attention of one forward; everything that layers share is prepared here once."""

    def __init__(
        self, cache: KvCache, entries: Sequence[PlannedRows], heads_per_kv: int, like: Tensor
    ) -> None:
        """`like` gives the dtype and device of the model."""
        self._cache = cache
        new_rows = [
            e.sequence.physical[e.sequence.num_rows : e.sequence.num_rows + e.num_rows]
            for e in entries
        ]
        self._new_rows = _on(like, np.concatenate(new_rows))
        self._groups = [
            _plan_group(group, heads_per_kv, like, is_only=len(group) == len(entries))
            for group in _split(entries)
        ]

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        window: int | None = None,
    ) -> Tensor:
        self._cache.write(layer, self._new_rows, keys, values)
        if self._groups[0].queries is None:
            return self._attend_group(self._groups[0], layer, query, scaling, window)
        output = query.new_empty(query.shape[1], query.shape[0], values.shape[2])
        for group in self._groups:
            assert group.queries is not None and group.real is not None  # noqa: S101, PT018
            assert group.targets is not None  # noqa: S101
            rows = query.index_select(1, group.queries)
            result = self._attend_group(group, layer, rows, scaling, window)
            output.index_copy_(0, group.targets, result.index_select(0, group.real))
        return output

    def _attend_group(
        self, group: _Group, layer: int, query: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """From query [Hq, B * T, D] to [B * T, Hq, Dv]."""
        num_entries, num_rows, num_cached = group.size
        keys, values = self._cache.gather(layer, group.cached)
        num_kv_heads, dim, value_dim = keys.shape[0], keys.shape[2], values.shape[2]
        output = scaled_dot_product_attention(
            _fold(query, num_entries, num_kv_heads),
            keys.view(num_kv_heads, num_entries, num_cached, dim).transpose(0, 1),
            values.view(num_kv_heads, num_entries, num_cached, value_dim).transpose(0, 1),
            attn_mask=group.bias.of(window),
            scale=scaling,
        )
        output = output.view(num_entries, num_kv_heads, -1, num_rows, value_dim)
        return output.permute(0, 3, 1, 2, 4).reshape(-1, query.shape[0], value_dim)


def _fold(query: Tensor, num_entries: int, num_kv_heads: int) -> Tensor:
    """From [Hq, B * T, D] to [B, Hkv, G * T, D]: query heads that share a key head together."""
    num_heads, num_queries, dim = query.shape
    if num_entries == 1:
        return query.reshape(1, num_kv_heads, -1, dim)
    if num_entries == num_queries:  # one row each: most often there is nothing to copy
        return query.transpose(0, 1).reshape(num_entries, num_kv_heads, -1, dim)
    folded = query.view(num_kv_heads, num_heads // num_kv_heads, num_entries, -1, dim)
    return folded.permute(2, 0, 1, 3, 4).reshape(num_entries, num_kv_heads, -1, dim)


def _on(like: Tensor, array: npt.NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(like.device)


def _split(entries: Sequence[PlannedRows]) -> list[list[PlannedRows]]:
    """Entries that may share a padded call: few rows together, and contexts within a factor 4."""
    groups: dict[tuple[int, int], list[PlannedRows]] = {}
    for i, entry in enumerate(entries):
        if entry.num_rows > _LARGE_ENTRY:
            kind = (-1 - i, 0)  # on its own
        else:
            context = max(entry.num_visible, 128).bit_length() // 2
            kind = (int(entry.num_rows > _SMALL_ENTRY), context)
        groups.setdefault(kind, []).append(entry)
    return list(groups.values())


def _plan_group(
    entries: Sequence[PlannedRows], heads_per_kv: int, like: Tensor, *, is_only: bool
) -> _Group:
    num_entries = len(entries)
    num_rows = max(entry.num_rows for entry in entries)
    num_cached = max(entry.num_visible for entry in entries)
    cached = np.zeros((num_entries, num_cached), np.int64)
    queries = np.zeros((num_entries, num_rows), np.int64)
    real = np.zeros((num_entries, num_rows), np.bool_)
    seen = np.zeros((num_entries, num_rows, num_cached), np.bool_)
    for i, entry in enumerate(entries):
        cached[i, : entry.num_visible] = entry.sequence.physical[: entry.num_visible]
        queries[i, : entry.num_rows] = np.arange(entry.first, entry.first + entry.num_rows)
        real[i, : entry.num_rows] = True
        _fill_seen(seen[i], entry)
    needs_index = not (is_only and real.all())
    return _Group(
        size=(num_entries, num_rows, num_cached),
        cached=_rows_of(like, cached.ravel()),
        bias=MaskBias(seen, heads_per_kv, like),
        queries=_on(like, queries.ravel()) if needs_index else None,
        real=_on(like, np.flatnonzero(real)) if needs_index else None,
        targets=_on(like, queries[real]) if needs_index else None,
    )


def _rows_of(like: Tensor, rows: npt.NDArray[np.int64]) -> Tensor | slice:
    """Rows that follow each other, as those of one sequence often do, need not be gathered."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1 and (np.diff(rows) == 1).all():
        return slice(first, last + 1)
    return _on(like, rows)


def _fill_seen(seen: npt.NDArray[np.bool_], entry: PlannedRows) -> None:
    """Set what each row sees in bool [T, S]; rows that pad see row 0, lest they see nothing."""
    num_prefix, num_rows = entry.sequence.num_prefix, entry.num_rows
    seen[num_rows:, 0] = True
    seen[:num_rows, :num_prefix] = True
    tail = seen[:num_rows, num_prefix : entry.num_visible]
    if entry.rows.visible is None:
        tail[:] = True if num_rows == 1 else np.tri(num_rows, dtype=np.bool_)
    else:
        tail[:] = visible_slots(entry.rows.visible, tail.shape[1])
