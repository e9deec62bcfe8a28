"""A language model made of hashes, for tests in virtual time: no torch, thousands of rows a second.

It is a transformer with the arithmetic replaced. Every row has two cached values, as a row of a
two-layer transformer has keys and values: the first is a hash of its token and position, the second
a hash of itself and the sum of the first values that it sees. Its logits are a hash of the sum of
the second values that it sees. Sums are modulo 2**64, so the order of slots does not matter, as
with rotary positions, and a wrong mask, a wrong compaction, a wrong position or a missing row
changes every later token. `strict` models refuse a row whose visible positions have a gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from specedge_p2p.lm.choosing import choose_token, rank_children
from specedge_p2p.lm.pages import PagePool
from specedge_p2p.lm.ports import CacheInfo, Children, ModelInfo, Rows, SamplingParams, TokenIds
from specedge_p2p.lm.prefix import PageName
from specedge_p2p.lm.rows import check_batch, check_compaction, check_rows, visible_slots
from specedge_p2p.lm.toy_hashes import Floats, Words, advance, first_values, mix, row_logits
from specedge_p2p.lm.toy_hashes import ToyParams as ToyParams
from specedge_p2p.lm.toy_text import EOS
from specedge_p2p.lm.toy_text import ToyText as ToyText
from specedge_p2p.noise import NoiseKey


@dataclass(slots=True)
class _Sequence:
    sampling: SamplingParams
    key: NoiseKey
    sums: Words = field(default_factory=lambda: np.zeros(2, np.uint64))
    num_prefix: int = 0
    values: Words = field(default_factory=lambda: np.zeros((0, 2), np.uint64))  # [tail, 2]
    positions: TokenIds = field(default_factory=lambda: np.zeros(0, np.int32))  # [tail]
    pages: list[int] = field(default_factory=list)
    page_sums: list[Words] = field(default_factory=list)
    """The sums after each full page of the prefix: what another sequence needs to go on there."""

    @property
    def num_tail(self) -> int:
        return len(self.values)

    @property
    def num_rows(self) -> int:
        return self.num_prefix + self.num_tail

    def append(self, values: Words, page_rows: int) -> None:
        """Lengthen the prefix by rows with these values, [T, 2]."""
        sums = self.sums + np.cumsum(values, axis=0, dtype=np.uint64)
        first_end = page_rows - 1 - self.num_prefix % page_rows
        self.page_sums.extend(sums[first_end::page_rows])
        self.num_prefix += len(values)
        if len(values):
            self.sums = sums[-1]


class ToyModel:
    """The port `LanguageModel` on hashes.

    Args:
        cache_rows: over all sequences, rounded down to whole pages.
        page_rows: rows of a page; more than 1, and pages are shared.
        strict: refuse rows whose visible positions have a gap.
    """

    def __init__(
        self,
        params: ToyParams | None = None,
        *,
        name: str = "toy",
        max_context: int = 4096,
        cache_rows: int = 1 << 20,
        page_rows: int = 1,
        strict: bool = True,
    ) -> None:
        self._params = params or ToyParams()
        num_pages = cache_rows // page_rows
        self._cache = CacheInfo(num_pages * page_rows, page_rows, can_share=page_rows > 1)
        self._pool = PagePool(num_pages)
        self._sums_by_page: dict[int, Words] = {}
        self._strict = strict
        self._sequences: dict[int, _Sequence] = {}
        self._info = ModelInfo(
            name=name,
            vocab_size=self._params.vocab_size,
            max_context=max_context,
            eos_token_ids=(EOS,),
            dtype="float64",
            fingerprint=blake2b(repr((name, self._params)).encode(), digest_size=16).digest(),
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def cache(self) -> CacheInfo:
        return self._cache

    @property
    def num_free_rows(self) -> int:
        return self._pool.num_free * self._cache.page_rows

    def add_sequence(self, sequence: int, sampling: SamplingParams, key: NoiseKey) -> None:
        if sequence in self._sequences:
            raise ValueError(f"sequence {sequence} is open already")
        self._sequences[sequence] = _Sequence(sampling, key)

    def drop_sequence(self, sequence: int) -> None:
        if state := self._sequences.pop(sequence, None):
            self._pool.give_back(state.pages)

    def share_prefix(self, sequence: int, names: Sequence[PageName]) -> None:
        if not self._cache.can_share:
            return
        state = self._open(sequence)
        if len(names) > len(state.page_sums):
            raise ValueError(f"{len(names)} pages shared of a prefix of {state.num_prefix} rows")
        pages = state.pages[: len(names)]
        self._pool.share(pages, names)
        self._sums_by_page.update(zip(pages, state.page_sums, strict=False))

    def adopt_prefix(self, sequence: int, names: Sequence[PageName]) -> int:
        state = self._open(sequence)
        if state.num_tail or state.num_prefix % self._cache.page_rows:
            return 0
        pages = self._pool.adopt(names[len(state.pages) :])
        if pages:
            state.pages += pages
            state.page_sums += [self._sums_by_page[page] for page in pages]
            state.sums = state.page_sums[-1]
        num_rows = len(pages) * self._cache.page_rows
        state.num_prefix += num_rows
        return num_rows

    def num_prefix_rows(self, sequence: int) -> int:
        return self._open(sequence).num_prefix

    def num_tail_rows(self, sequence: int) -> int:
        return self._open(sequence).num_tail

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        chosen = []
        for rows, logits in zip(batch, self._forward(batch), strict=True):
            state = self._sequences[rows.sequence]
            positions = rows.positions[len(rows.positions) - rows.num_outputs :]
            tokens = [
                choose_token(row, state.sampling, state.key, int(position) + 1)
                for row, position in zip(logits, positions, strict=True)
            ]
            chosen.append(np.array(tokens, np.int32))
        return chosen

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        if not 1 <= branch_width <= self._params.vocab_size:
            raise ValueError(f"branch_width {branch_width} of {self._params.vocab_size} tokens")
        return [
            self._children(rows, logits, branch_width)
            for rows, logits in zip(batch, self._forward(batch), strict=True)
        ]

    def compact(self, sequence: int, commit: Sequence[int], keep: Sequence[int] = ()) -> None:
        state = self._open(sequence)
        check_compaction(state.num_tail, commit, keep)
        state.append(state.values[list(commit)], self._cache.page_rows)
        state.values, state.positions = state.values[list(keep)], state.positions[list(keep)]
        num_pages = self._num_pages(state.num_rows)
        self._pool.give_back(state.pages[num_pages:])
        del state.pages[num_pages:]

    def _num_pages(self, num_rows: int) -> int:
        return -(-num_rows // self._cache.page_rows)

    def _open(self, sequence: int) -> _Sequence:
        try:
            return self._sequences[sequence]
        except KeyError:
            raise ValueError(f"sequence {sequence} is not open") from None

    def _children(self, rows: Rows, logits: Floats, branch_width: int) -> Children:
        state = self._sequences[rows.sequence]
        token_ids = np.zeros((rows.num_outputs, branch_width), np.int32)
        log_probs = np.zeros((rows.num_outputs, branch_width), np.float32)
        first = len(rows.positions) - rows.num_outputs
        for i, row in enumerate(logits):
            token_ids[i], log_probs[i] = rank_children(
                row,
                state.sampling.temperature,
                state.key,
                int(rows.positions[first + i]) + 1,
                branch_width,
            )
        return Children(token_ids, log_probs)

    def _forward(self, batch: Sequence[Rows]) -> list[Floats]:
        """Per entry the logits [num_outputs, V]; writes all rows or none."""
        check_batch(batch, self._info)
        for rows in batch:
            state = self._open(rows.sequence)
            check_rows(rows, state)
            if self._strict:
                _check_positions(rows, state)
        self._take_pages(batch)
        return [self._write(rows, self._sequences[rows.sequence]) for rows in batch]

    def _take_pages(self, batch: Sequence[Rows]) -> None:
        states = [self._sequences[rows.sequence] for rows in batch]
        missing = [
            self._num_pages(state.num_rows + len(rows.token_ids)) - len(state.pages)
            for state, rows in zip(states, batch, strict=True)
        ]
        pages = self._pool.take(sum(missing))
        for state, num_pages in zip(states, missing, strict=True):
            state.pages += pages[:num_pages]
            del pages[:num_pages]

    def _write(self, rows: Rows, state: _Sequence) -> Floats:
        first = first_values(self._params, rows.token_ids, rows.positions)
        seen = None
        if rows.visible is not None:
            seen = visible_slots(rows.visible, state.num_tail + len(first))
        second = mix(_sum_seen(first, seen, state, 0) ^ mix(first + np.uint64(1)))
        total = _sum_seen(second, seen, state, 1)
        values = np.stack([first, second], axis=1)
        if seen is None:
            state.append(values, self._cache.page_rows)
        else:
            state.values = np.concatenate([state.values, values])
            state.positions = np.concatenate([state.positions, rows.positions])
        start = len(first) - rows.num_outputs
        return row_logits(self._params, mix(total[start:] ^ mix(second[start:] + np.uint64(2))))


def toy_logits(params: ToyParams, token_ids: Sequence[int]) -> Floats:
    """Logits float64 [V] after the last token, without cache, slots or masks."""
    sum_first = sum_second = state = 0
    for position, token in enumerate(token_ids):
        sum_first, sum_second, state = advance(params, (sum_first, sum_second), token, position)
    logits: Floats = row_logits(params, np.array([state], np.uint64))[0]
    return logits


def toy_decode(
    params: ToyParams,
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    key: NoiseKey,
    max_tokens: int,
) -> list[int]:
    """What a session must yield: the tokens after the prompt, cut after the end of sequence.

    Written without cache, slots or masks: the reference for everything that has them.
    """
    tokens = list(prompt_ids)
    sum_first = sum_second = state = 0
    for position in range(len(prompt_ids) + max_tokens):
        if position >= len(prompt_ids):
            logits = row_logits(params, np.array([state], np.uint64))[0]
            tokens.append(choose_token(logits, sampling, key, position))
            if tokens[-1] == EOS:
                break
        sums = (sum_first, sum_second)
        sum_first, sum_second, state = advance(params, sums, tokens[position], position)
    return tokens[len(prompt_ids) :]


def _check_positions(rows: Rows, state: _Sequence) -> None:
    """A row at position p sees positions 0 to p, each once."""
    if rows.visible is None:
        return
    positions = np.concatenate([state.positions, rows.positions]).astype(np.int64)
    seen = visible_slots(rows.visible, len(positions))
    for i, position in enumerate(rows.positions):
        expected = np.arange(state.num_prefix, int(position) + 1)
        if not np.array_equal(np.sort(positions[seen[i]]), expected):
            raise ValueError(
                f"the row at position {position} sees a prefix of {state.num_prefix} rows and "
                f"positions {np.sort(positions[seen[i]]).tolist()}"
            )


def _sum_seen(
    values: Words, seen: npt.NDArray[np.bool_] | None, state: _Sequence, layer: int
) -> Words:
    """For each new row the sum of `values` [T] and older ones that it sees, uint64 [T]."""
    prefix = state.sums[layer : layer + 1]
    if seen is None:
        return prefix + np.cumsum(values, dtype=np.uint64)
    tail = np.concatenate([state.values[:, layer], values])
    sums: Words = prefix + np.where(seen, tail, np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return sums
