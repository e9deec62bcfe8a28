"""A transformers model behind the port: chunks, trees and plain rows in one ragged forward."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specedge_p2p.lm.clear_errors import clear_choice_errors, clear_forward_errors
from specedge_p2p.lm.families import check_windows
from specedge_p2p.lm.free_memory import free_memory
from specedge_p2p.lm.fused_layer import fuse_layers
from specedge_p2p.lm.fused_model import fused_model
from specedge_p2p.lm.gpu_forward import gpu_forward
from specedge_p2p.lm.kv_cache import CacheShape, KvCache
from specedge_p2p.lm.kv_memory import KvMemory, plan_cache
from specedge_p2p.lm.packed_linear import pack_linears
from specedge_p2p.lm.pages import PAGE_ROWS, CachedSequence, PagePool
from specedge_p2p.lm.ports import (
    CacheInfo,
    Children,
    ModelError,
    ModelInfo,
    OutOfCache,
    Rows,
    SamplingParams,
    TokenIds,
    WhileBusy,
)
from specedge_p2p.lm.prefix import PageName
from specedge_p2p.lm.rows import check_batch, check_compaction, check_rows
from specedge_p2p.lm.sampling import Draws, choose_tokens, rank_children
from specedge_p2p.lm.to_device import on_device
from specedge_p2p.lm.tree_attention import AttentionProbe, PagedAttention, PlannedRows
from specedge_p2p.noise import NoiseKey


class TransformersModel:
    """The port `LanguageModel` on an unmodified transformers model and a paged cache.

    Args:
        model: a causal language model built with `register_attention()`'s name.
        info: what it is.
        cache_rows: rows of cache, rounded up to whole pages; or the memory that they may take,
            None for a share of what is free: see `kv_memory.plan_cache`.
        agree: from this process's number of cache rows to that of all ranks of a shared model.

    Raises:
        ModelError: for a model that cannot be run here, or too little memory for its cache.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        info: ModelInfo,
        cache_rows: int | KvMemory | None,
        agree: Callable[[int], int] = int,
    ) -> None:
        self._model = model.eval()
        fuse_layers(model)
        pack_linears(model)
        self._info = info
        self._like = next(model.parameters())
        forward: Any = model.forward
        if "logits_to_keep" not in inspect.signature(forward).parameters:
            raise ModelError(f"{info.name}: its forward computes no chosen logits: not supported")
        self._fused = fused_model(model)
        self._shape, self._heads_per_kv, has_windows = self._probe()
        if not isinstance(cache_rows, int):
            row_bytes = self._shape.row_bytes(self._like.dtype)
            free = free_memory(self._like.device)
            cache_rows = agree(plan_cache(row_bytes, info.max_context, free, cache_rows).num_rows)
            self._info = replace(info, max_context=min(info.max_context, cache_rows))
        num_pages = -(-cache_rows // PAGE_ROWS)
        self._pool = PagePool(num_pages)
        self._cache_info = CacheInfo(num_pages * PAGE_ROWS, PAGE_ROWS, can_share=True)
        # One page more than is lent: rows that pad a forward on a GPU are written there.
        self._cache = KvCache(
            self._shape, (num_pages + 1) * PAGE_ROWS, self._like.dtype, self._like.device
        )
        self._gpu = None
        if not has_windows:
            self._gpu = gpu_forward(
                self._model, self._cache, self._heads_per_kv, num_pages, is_alone=agree is int
            )
        self._sequences: dict[int, CachedSequence] = {}
        self.while_busy: WhileBusy = _wait
        """Called by `choose` and `expand` while a GPU computes."""

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def cache(self) -> CacheInfo:
        return self._cache_info

    @property
    def num_free_rows(self) -> int:
        """Rows of free pages; what is left of pages in use comes on top."""
        return self._pool.num_free * PAGE_ROWS

    def add_sequence(self, sequence: int, sampling: SamplingParams, key: NoiseKey) -> None:
        if sequence in self._sequences:
            raise ValueError(f"sequence {sequence} is open already")
        self._sequences[sequence] = CachedSequence(sampling, key)

    def drop_sequence(self, sequence: int) -> None:
        if state := self._sequences.pop(sequence, None):
            self._pool.give_back(state.pages)

    def share_prefix(self, sequence: int, names: Sequence[PageName]) -> None:
        self._open(sequence).share(names, self._pool)

    def adopt_prefix(self, sequence: int, names: Sequence[PageName]) -> int:
        return self._open(sequence).adopt(names, self._pool)

    def num_prefix_rows(self, sequence: int) -> int:
        return self._open(sequence).num_prefix

    def num_tail_rows(self, sequence: int) -> int:
        return self._open(sequence).num_tail

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        logits = self._forward(batch)
        if not len(logits):
            return [np.zeros(0, np.int32) for _ in batch]
        with clear_choice_errors():
            chosen = choose_tokens(logits, self._draws(batch))
        self._let_others_work()
        return _split(chosen.cpu().numpy().astype(np.int32), batch)

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        if not 1 <= branch_width <= self._info.vocab_size:
            raise ValueError(f"branch_width {branch_width} of {self._info.vocab_size} tokens")
        logits = self._forward(batch)
        with clear_choice_errors():
            ids, log_probs = rank_children(logits, self._draws(batch), branch_width)
        self._let_others_work()
        token_ids = _split(ids.cpu().numpy().astype(np.int32), batch)
        numbers = _split(log_probs.cpu().numpy(), batch)
        return [Children(*parts) for parts in zip(token_ids, numbers, strict=True)]

    def compact(self, sequence: int, commit: Sequence[int], keep: Sequence[int] = ()) -> None:
        state = self._open(sequence)
        check_compaction(state.num_tail, commit, keep)
        source = np.array([*commit, *keep], np.int64)
        target = np.arange(len(source))
        moved = source != target
        if moved.any():
            tail = state.physical[state.num_prefix : state.num_rows]
            self._cache.move(self._rows(tail[source[moved]]), self._rows(tail[target[moved]]))
        state.num_prefix += len(commit)
        state.num_tail = len(keep)
        self._pool.give_back(state.shrink())

    def _let_others_work(self) -> None:
        """Until all that was launched is done, as long as there is something else to do."""
        if self._like.is_cuda:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # of its own device: the current one is that of this thread
            done.record(torch.cuda.current_stream(self._like.device))
            self.while_busy(done.query)

    def _rows(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        return on_device(rows, self._like.device)

    def _open(self, sequence: int) -> CachedSequence:
        try:
            return self._sequences[sequence]
        except KeyError:
            raise ValueError(f"sequence {sequence} is not open") from None

    @torch.inference_mode()
    def _probe(self) -> tuple[CacheShape, int, bool]:
        """The shape of a row, query heads per key head, and whether a layer has a window."""
        probe = AttentionProbe()
        row = torch.zeros((1, 1), dtype=torch.long, device=self._like.device)
        model: Any = self._model
        model(input_ids=row, position_ids=row, use_cache=False, layer_attention=probe)
        check_windows(self._info.name, model.config.get_text_config(), probe.windows)
        shape, heads_per_kv = probe.result()
        return shape, heads_per_kv, any(probe.windows.values())

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Rows]) -> Tensor:
        """Logits [outputs, V] of all entries' output rows; writes all rows or none."""
        check_batch(batch, self._info)
        for rows in batch:
            check_rows(rows, self._open(rows.sequence))
        self._take_pages(batch)
        entries, first = [], 0
        for rows in batch:
            entries.append(PlannedRows(rows, self._sequences[rows.sequence], first))
            first += len(rows.token_ids)
        with clear_forward_errors():
            logits = self._compute(entries)
        for rows in batch:
            state = self._sequences[rows.sequence]
            if rows.visible is None:
                state.num_prefix += len(rows.token_ids)
            else:
                state.num_tail += len(rows.token_ids)
        return logits

    def _compute(self, entries: Sequence[PlannedRows]) -> Tensor:
        """Logits [outputs, V]; writes keys and values."""
        if self._gpu is not None:
            return self._gpu.logits(entries)
        ids, positions, outputs = self._flat(entries)
        attention = PagedAttention(self._cache, entries, self._heads_per_kv, self._like)
        return self._logits(ids, positions, outputs, attention)[0]

    def _logits(
        self, ids: Tensor, positions: Tensor, outputs: Tensor, attention: PagedAttention
    ) -> Tensor:
        """Logits [1, O, V] of token ids and positions [1, N], after the rows `outputs` [O]."""
        if self._fused is not None:
            return self._fused.logits(ids, positions, outputs, attention)
        result = self._model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=outputs,
            layer_attention=attention,
        )
        logits: Tensor = result.logits
        return logits

    def _flat(self, entries: Sequence[PlannedRows]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [1, N], positions [1, N] and the output rows."""
        ids = np.concatenate([entry.rows.token_ids for entry in entries]).astype(np.int64)
        positions = np.concatenate([entry.rows.positions for entry in entries]).astype(np.int64)
        ends = [entry.first + entry.num_rows for entry in entries]
        outputs = np.concatenate(
            [
                np.arange(end - entry.rows.num_outputs, end)
                for end, entry in zip(ends, entries, strict=True)
            ]
        )
        return self._rows(ids)[None], self._rows(positions)[None], self._rows(outputs)

    def _take_pages(self, batch: Sequence[Rows]) -> None:
        states = [self._sequences[rows.sequence] for rows in batch]
        missing = [
            state.num_missing_pages(len(rows.token_ids))
            for state, rows in zip(states, batch, strict=True)
        ]
        if sum(missing) > self._pool.num_free:
            raise OutOfCache(f"{sum(missing)} cache pages wanted, {self._pool.num_free} free")
        for state, num_pages in zip(states, missing, strict=True):
            if num_pages:
                state.extend(self._pool.take(num_pages))

    def _draws(self, batch: Sequence[Rows]) -> Draws:
        sampling: list[SamplingParams] = []
        keys: list[NoiseKey] = []
        positions: list[int] = []
        for rows in batch:
            state = self._sequences[rows.sequence]
            sampling += [state.sampling] * rows.num_outputs
            keys += [state.key] * rows.num_outputs
            start = len(rows.positions) - rows.num_outputs
            positions += (rows.positions[start:] + 1).tolist()
        return Draws(sampling, keys, positions)


def _wait(is_done: Callable[[], bool]) -> None:
    """Nothing else to do: whoever reads the result waits for it."""


def _split(values: npt.NDArray[Any], batch: Sequence[Rows]) -> list[npt.NDArray[Any]]:
    """What stands for the outputs of all entries, entry by entry."""
    parts, start = [], 0
    for rows in batch:
        parts.append(values[start : start + rows.num_outputs])
        start += rows.num_outputs
    return parts
