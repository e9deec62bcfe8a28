"""A transformers model behind the port: chunks, trees and plain rows in one ragged forward."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specedge_p2p.lm.gpu_forward import gpu_forward
from specedge_p2p.lm.kv_cache import KvCache
from specedge_p2p.lm.pages import PAGE_ROWS, CachedSequence, PagePool
from specedge_p2p.lm.ports import (
    Children,
    ModelError,
    ModelInfo,
    OutOfCache,
    Rows,
    SamplingParams,
    TokenIds,
)
from specedge_p2p.lm.rows import check_batch, check_compaction, check_rows
from specedge_p2p.lm.sampling import Draws, choose_tokens, rank_children
from specedge_p2p.lm.tree_attention import AttentionProbe, PagedAttention, PlannedRows
from specedge_p2p.noise import NoiseKey


class TransformersModel:
    """The port `LanguageModel` on an unmodified transformers model and a paged cache.

    Args:
        model: a causal language model built with `register_attention()`'s name.
        info: what it is.
        cache_rows: rows of cache; rounded up to whole pages. None: see `plan_cache_rows`.
        agree: from this process's number of cache rows to that of all ranks of a shared model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        info: ModelInfo,
        cache_rows: int | None,
        agree: Callable[[int], int] = int,
    ) -> None:
        self._model = model.eval()
        self._info = info
        self._like = next(model.parameters())
        forward: Any = model.forward
        if "logits_to_keep" not in inspect.signature(forward).parameters:
            raise ModelError(f"{info.name}: its forward computes no chosen logits: not supported")
        self._shape, self._heads_per_kv = self._probe()
        row_bytes = self._shape.row_bytes(self._like.dtype)
        if cache_rows is None:
            cache_rows = plan_cache_rows(row_bytes, info.max_context, self._like.device)
        num_pages = -(-agree(cache_rows) // PAGE_ROWS)
        self._pool = PagePool(num_pages)
        self._cache = KvCache(
            self._shape, num_pages * PAGE_ROWS, self._like.dtype, self._like.device
        )
        self._gpu = gpu_forward(
            self._model, self._cache, self._heads_per_kv, self._pool, is_alone=agree is int
        )
        self._sequences: dict[int, CachedSequence] = {}

    @property
    def info(self) -> ModelInfo:
        return self._info

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

    def num_prefix_rows(self, sequence: int) -> int:
        return self._open(sequence).num_prefix

    def num_tail_rows(self, sequence: int) -> int:
        return self._open(sequence).num_tail

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        logits = self._forward(batch)
        if not len(logits):
            return [np.zeros(0, np.int32) for _ in batch]
        chosen = choose_tokens(logits, self._draws(batch)).cpu().numpy().astype(np.int32)
        return np.split(chosen, _ends(batch))

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        if not 1 <= branch_width <= self._info.vocab_size:
            raise ValueError(f"branch_width {branch_width} of {self._info.vocab_size} tokens")
        logits = self._forward(batch)
        draws = self._draws(batch)
        ids, log_probs = rank_children(logits, draws, branch_width)
        parts = zip(
            np.split(ids.cpu().numpy().astype(np.int32), _ends(batch)),
            np.split(log_probs.cpu().numpy(), _ends(batch)),
            strict=True,
        )
        return [Children(token_ids, numbers) for token_ids, numbers in parts]

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

    def _rows(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(rows).to(self._like.device)

    def _open(self, sequence: int) -> CachedSequence:
        try:
            return self._sequences[sequence]
        except KeyError:
            raise ValueError(f"sequence {sequence} is not open") from None

    @torch.inference_mode()
    def _probe(self) -> Any:  # noqa: ANN401
        probe = AttentionProbe()
        row = torch.zeros((1, 1), dtype=torch.long, device=self._like.device)
        self._model(input_ids=row, position_ids=row, use_cache=False, layer_attention=probe)
        return probe.result()

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
        result = self._model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=outputs,
            layer_attention=attention,
        )
        logits: Tensor = result.logits[0]
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


def plan_cache_rows(row_bytes: int, max_context: int, device: torch.device) -> int:
    """Rows of cache that fit: 80 % of a GPU's free memory, or 1 GiB beside other programs.

    Never more than 64 full contexts, never less than one.
    """
    budget = 1 << 30
    if device.type == "cuda":
        budget = int(torch.cuda.mem_get_info(device)[0] * 0.8)
    return max(max_context, min(budget // row_bytes, 64 * max_context))


def _ends(batch: Sequence[Rows]) -> list[int]:
    """Where the outputs of all entries but the last end."""
    ends: list[int] = np.cumsum([rows.num_outputs for rows in batch])[:-1].tolist()
    return ends
