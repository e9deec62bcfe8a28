"""Language models that know a recording by heart and nothing else: no network, no torch.

A row is *on the path* when its parent is and its token is the recorded one. There the target
chooses the recorded next token and a draft model ranks the recorded children. Off the path, where
nothing is ever accepted, both answer by a hash of the row's own path: the target with any token,
a draft model with the log probabilities recorded at some other position and made-up tokens. Two
draft models make up the same tokens for the same path, as if they agreed there.

The parent of a row is the highest slot below its own that it sees. This is the inner loop of a
simulation, so nothing is checked that the callers' own tests check.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from specedge_p2p.lm.ports import (
    MAX_TAIL_SLOTS,
    CacheInfo,
    Children,
    ModelInfo,
    OutOfCache,
    Rows,
    SamplingParams,
    TokenIds,
)
from specedge_p2p.lm.prefix import PageName
from specedge_p2p.noise import NoiseKey
from tests.simulator.traces import BRANCH_WIDTH, Trace

ON_PATH = 0
"""The hash of all rows on the path; those of other rows are above."""
_MASK = (1 << 31) - 1
_RANKS = np.arange(BRANCH_WIDTH, dtype=np.int64) * 37
MAX_CONTEXT = 4096
USELESS = "useless"
"""A draft model that is never right; it claims what a good one claims."""
LIAR = "liar"
"""One that is never right and sure of each of its guesses."""
LIE = math.log(0.95)

ByKey = Mapping[NoiseKey, Trace]


def by_key(traces: Iterable[Trace]) -> ByKey:
    """What models look traces up in; made once for all of a world."""
    return {trace.key: trace for trace in traces}


@dataclass(slots=True)
class _Sequence:
    trace: Trace
    num_prefix: int = 0
    tail: list[int] = field(default_factory=list)
    """By slot: `ON_PATH` or the hash of the path there."""


class TraceModel:
    """What both have in common: whose rows are on the path, and how many there are.

    Args:
        traces: a sequence is told by its noise key which of them it follows; see `by_key`.
        vocab_size: of the recorded pair.
        cache_rows: rows over all sequences.
    """

    def __init__(
        self, traces: ByKey, vocab_size: int, name: str, cache_rows: int = 1 << 24
    ) -> None:
        self._traces = traces
        self._cache_rows = cache_rows
        self._num_rows = 0
        self._sequences: dict[int, _Sequence] = {}
        self._info = ModelInfo(name, vocab_size, MAX_CONTEXT, (), "float32", name.encode())

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def cache(self) -> CacheInfo:
        return CacheInfo(self._cache_rows)

    @property
    def num_free_rows(self) -> int:
        return self._cache_rows - self._num_rows

    def add_sequence(self, sequence: int, sampling: SamplingParams, key: NoiseKey) -> None:
        if sequence in self._sequences:
            raise ValueError(f"sequence {sequence} is open already")
        self._sequences[sequence] = _Sequence(self._traces[key])

    def drop_sequence(self, sequence: int) -> None:
        state = self._sequences.pop(sequence, None)
        if state is not None:
            self._num_rows -= state.num_prefix + len(state.tail)

    def share_prefix(self, sequence: int, names: Sequence[PageName]) -> None:
        """Nothing is shared."""

    def adopt_prefix(self, sequence: int, names: Sequence[PageName]) -> int:
        return 0

    def num_prefix_rows(self, sequence: int) -> int:
        return self._sequences[sequence].num_prefix

    def num_tail_rows(self, sequence: int) -> int:
        return len(self._sequences[sequence].tail)

    def compact(self, sequence: int, commit: Sequence[int], keep: Sequence[int] = ()) -> None:
        state = self._sequences[sequence]
        self._num_rows -= len(state.tail) - len(commit) - len(keep)
        state.num_prefix += len(commit)
        state.tail = [state.tail[slot] for slot in keep]

    def _write(self, batch: Sequence[Rows]) -> list[list[int]]:
        """Per entry the hashes of its rows; writes all rows or none."""
        num_rows = sum(len(rows.token_ids) for rows in batch)
        if num_rows > self.num_free_rows:
            raise OutOfCache(f"{num_rows} rows wanted, {self.num_free_rows} free")
        self._num_rows += num_rows
        return [_hashes(rows, self._sequences[rows.sequence]) for rows in batch]


class TraceTarget(TraceModel):
    """Chooses the recorded tokens. `expand` is not for targets."""

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        written = self._write(batch)
        return [self._chosen(rows, hashes) for rows, hashes in zip(batch, written, strict=True)]

    def _chosen(self, rows: Rows, hashes: list[int]) -> TokenIds:
        tokens = self._sequences[rows.sequence].trace.tokens
        vocab_size = self._info.vocab_size
        start = len(hashes) - rows.num_outputs
        chosen = np.empty(rows.num_outputs, np.int32)
        for i, position in enumerate(rows.positions[start:].tolist()):
            at = hashes[start + i]
            if at == ON_PATH and position + 1 < len(tokens):
                chosen[i] = tokens[position + 1]
            else:
                chosen[i] = _mix(at + position) % vocab_size
        return chosen

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        raise NotImplementedError("a recorded target does not draft")


class TraceDraft(TraceModel):
    """Ranks the recorded children of one of the recorded draft models; or a `USELESS`, a `LIAR`."""

    def __init__(
        self, traces: ByKey, vocab_size: int, draft: str, cache_rows: int = 1 << 24
    ) -> None:
        super().__init__(traces, vocab_size, draft, cache_rows)
        self._is_useless, self._is_liar = draft in (USELESS, LIAR), draft == LIAR
        self._draft = "small" if self._is_useless else draft

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        raise NotImplementedError("a recorded draft model does not choose")

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        written = self._write(batch)
        return [
            self._children(rows, hashes, min(branch_width, BRANCH_WIDTH))
            for rows, hashes in zip(batch, written, strict=True)
        ]

    def _children(self, rows: Rows, hashes: list[int], width: int) -> Children:
        trace = self._sequences[rows.sequence].trace
        guesses = trace.guesses[self._draft]
        first, num_new = trace.prompt_length - 1, trace.num_new
        start = len(hashes) - rows.num_outputs
        places, strangers, seeds = [], [], []
        for i, position in enumerate(rows.positions[start:].tolist()):
            at, place = hashes[start + i], position - first
            if at != ON_PATH or self._is_useless or not 0 <= place < num_new:
                seed = at or _mix(position + 1)
                strangers.append(i)
                seeds.append(seed)
                place = _mix(seed) % num_new
            places.append(place)
        token_ids = guesses.token_ids[places]
        if strangers:
            made_up = np.array(seeds, np.int64)[:, None] + _RANKS
            token_ids[strangers] = made_up % self._info.vocab_size
        log_probs = guesses.log_probs[places][:, :width]
        if self._is_liar:
            log_probs = np.full_like(log_probs, LIE)
        return Children(token_ids[:, :width], log_probs)


def _hashes(rows: Rows, state: _Sequence) -> list[int]:
    """The hashes of an entry's rows, which are written to the sequence."""
    if rows.visible is None:
        state.num_prefix += len(rows.token_ids)
        return [ON_PATH] * len(rows.token_ids)  # what is committed is what was recorded
    tail, tokens = state.tail, state.trace.tokens
    first = len(tail)
    if first + len(rows.token_ids) > MAX_TAIL_SLOTS:
        raise ValueError(f"a tail has at most {MAX_TAIL_SLOTS} slots")
    packed = np.ascontiguousarray(rows.visible, dtype="<u8").tobytes()
    num_bytes = 8 * rows.visible.shape[1]
    columns = zip(rows.token_ids.tolist(), rows.positions.tolist(), strict=True)
    for i, (token, position) in enumerate(columns):
        seen = int.from_bytes(packed[i * num_bytes : (i + 1) * num_bytes], "little")
        parent = (seen & ((1 << (first + i)) - 1)).bit_length() - 1
        at = ON_PATH if parent < 0 else tail[parent]
        if at != ON_PATH or position >= len(tokens) or tokens[position] != token:
            at = _mix(at * 31 + position * 8191 + token + 1)
        tail.append(at)
    return tail[first:]


def _mix(x: int) -> int:
    """31 well-mixed bits, never `ON_PATH`."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16) or 1
