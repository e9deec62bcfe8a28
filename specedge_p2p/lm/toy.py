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
from specedge_p2p.lm.ports import (
    Children,
    ModelInfo,
    OutOfCache,
    Rows,
    SamplingParams,
    TokenIds,
)
from specedge_p2p.lm.rows import check_batch, check_compaction, check_rows, visible_slots
from specedge_p2p.lm.toy_text import BOS, EOS
from specedge_p2p.lm.toy_text import ToyText as ToyText
from specedge_p2p.noise import NoiseKey

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_UNREACHABLE = -60.0

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ToyParams:
    """Which function of the tokens the logits are.

    Args:
        vocab_size: tokens; 0 is the beginning and is never chosen, 1 is the end of sequence.
        seed: models of one seed agree, up to `perturbation`.
        sharpness: spread of the logits; at 2 the best token has a probability of about 0.65.
        eos_bias: added to the logit of the end of sequence.
        perturbation: spread of what is added to the logits: how unskilled a draft model is. With
            the other values as they are, it agrees with the unperturbed model on 0.89, 0.82, 0.71,
            0.57, 0.29 of the greedy tokens at 0.3, 0.5, 0.8, 1.2, 2.5.
        perturbation_seed: which perturbation.
    """

    vocab_size: int = 32
    seed: int = 0
    sharpness: float = 2.0
    eos_bias: float = -8.0
    perturbation: float = 0.0
    perturbation_seed: int = 1


@dataclass(slots=True)
class _Sequence:
    sampling: SamplingParams
    key: NoiseKey
    sums: Words = field(default_factory=lambda: np.zeros(2, np.uint64))
    num_prefix: int = 0
    values: Words = field(default_factory=lambda: np.zeros((0, 2), np.uint64))  # [tail, 2]
    positions: TokenIds = field(default_factory=lambda: np.zeros(0, np.int32))  # [tail]

    @property
    def num_tail(self) -> int:
        return len(self.values)


class ToyModel:
    """The port `LanguageModel` on hashes."""

    def __init__(
        self,
        params: ToyParams | None = None,
        *,
        name: str = "toy",
        max_context: int = 4096,
        cache_rows: int = 1 << 20,
        strict: bool = True,
    ) -> None:
        self._params = params or ToyParams()
        self._cache_rows = cache_rows
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
    def num_free_rows(self) -> int:
        used = sum(s.num_prefix + s.num_tail for s in self._sequences.values())
        return self._cache_rows - used

    def add_sequence(self, sequence: int, sampling: SamplingParams, key: NoiseKey) -> None:
        if sequence in self._sequences:
            raise ValueError(f"sequence {sequence} is open already")
        self._sequences[sequence] = _Sequence(sampling, key)

    def drop_sequence(self, sequence: int) -> None:
        self._sequences.pop(sequence, None)

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
        state.sums = state.sums + state.values[list(commit)].sum(axis=0, dtype=np.uint64)
        state.num_prefix += len(commit)
        state.values, state.positions = state.values[list(keep)], state.positions[list(keep)]

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
        num_rows = sum(len(rows.token_ids) for rows in batch)
        if num_rows > self.num_free_rows:
            raise OutOfCache(f"{num_rows} rows wanted, {self.num_free_rows} free")
        return [self._write(rows, self._sequences[rows.sequence]) for rows in batch]

    def _write(self, rows: Rows, state: _Sequence) -> Floats:
        first = _first_values(self._params, rows.token_ids, rows.positions)
        seen = None
        if rows.visible is not None:
            seen = visible_slots(rows.visible, state.num_tail + len(first))
        second = _mix(_sum_seen(first, seen, state, 0) ^ _mix(first + np.uint64(1)))
        total = _sum_seen(second, seen, state, 1)
        values = np.stack([first, second], axis=1)
        if seen is None:
            state.sums = state.sums + values.sum(axis=0, dtype=np.uint64)
            state.num_prefix += len(first)
        else:
            state.values = np.concatenate([state.values, values])
            state.positions = np.concatenate([state.positions, rows.positions])
        start = len(first) - rows.num_outputs
        return _logits(self._params, _mix(total[start:] ^ _mix(second[start:] + np.uint64(2))))


def toy_logits(params: ToyParams, token_ids: Sequence[int]) -> Floats:
    """Logits float64 [V] after the last token, without cache, slots or masks."""
    sum_first = sum_second = state = 0
    for position, token in enumerate(token_ids):
        sum_first, sum_second, state = _advance(params, (sum_first, sum_second), token, position)
    logits: Floats = _logits(params, np.array([state], np.uint64))[0]
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
            logits = _logits(params, np.array([state], np.uint64))[0]
            tokens.append(choose_token(logits, sampling, key, position))
            if tokens[-1] == EOS:
                break
        sums = (sum_first, sum_second)
        sum_first, sum_second, state = _advance(params, sums, tokens[position], position)
    return tokens[len(prompt_ids) :]


def _advance(
    params: ToyParams, sums: tuple[int, int], token: int, position: int
) -> tuple[int, int, int]:
    """One token further: the sums of both values and the state that the logits are a hash of."""
    first = _mix_int(token * _STEP + _mix_int(position * _STEP + params.seed))
    sum_first = (sums[0] + first) & _MASK
    second = _mix_int(sum_first ^ _mix_int(first + 1))
    sum_second = (sums[1] + second) & _MASK
    return sum_first, sum_second, _mix_int(sum_second ^ _mix_int(second + 2))


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


def _first_values(params: ToyParams, token_ids: TokenIds, positions: TokenIds) -> Words:
    step = np.uint64(_STEP)
    places = _mix(positions.astype(np.uint64) * step + np.uint64(params.seed))
    return _mix(token_ids.astype(np.uint64) * step + places)


def _logits(params: ToyParams, states: Words) -> Floats:
    """Float64 [R, V] from the states [R]."""
    logits = params.sharpness * _spread(states, 3, params.vocab_size)
    if params.perturbation:
        stream = 4 + params.perturbation_seed
        logits += params.perturbation * _spread(states, stream, params.vocab_size)
    logits[:, BOS] = _UNREACHABLE
    logits[:, EOS] += params.eos_bias
    return logits


def _spread(states: Words, stream: int, vocab_size: int) -> Floats:
    """Independent Gumbel numbers [R, V], a function of state, stream and token."""
    tokens = np.arange(vocab_size, dtype=np.uint64) * np.uint64(_STEP)
    mixed = _mix(_mix(states + np.uint64(stream))[:, None] ^ tokens)
    uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    numbers: Floats = -np.log(-np.log(uniform))
    return numbers


def _mix(x: Words) -> Words:
    """The finaliser of SplitMix64, modulo 2**64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
