"""A draft model that lies, for the network's own tests: a lie may cost rows, never a token."""

from collections.abc import Sequence

import numpy as np

from specedge_p2p.lm.ports import Children, LanguageModel, ModelInfo, Rows, SamplingParams, TokenIds
from specedge_p2p.noise import NoiseKey

_CLAIMED_LOG_PROB = -0.05


class GuessingModel:
    """Keeps the cache of a real model but guesses at random, and claims to be sure of it."""

    def __init__(self, model: LanguageModel, seed: int) -> None:
        self._model = model
        self._random = np.random.default_rng(seed)

    @property
    def info(self) -> ModelInfo:
        return self._model.info

    @property
    def num_free_rows(self) -> int:
        return self._model.num_free_rows

    def add_sequence(self, sequence: int, sampling: SamplingParams, key: NoiseKey) -> None:
        self._model.add_sequence(sequence, sampling, key)

    def drop_sequence(self, sequence: int) -> None:
        self._model.drop_sequence(sequence)

    def num_prefix_rows(self, sequence: int) -> int:
        return self._model.num_prefix_rows(sequence)

    def num_tail_rows(self, sequence: int) -> int:
        return self._model.num_tail_rows(sequence)

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        return self._model.choose(batch)

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        return [
            self._guess(len(children.token_ids), branch_width)
            for children in self._model.expand(batch, branch_width)
        ]

    def compact(self, sequence: int, commit: Sequence[int], keep: Sequence[int] = ()) -> None:
        self._model.compact(sequence, commit, keep)

    def _guess(self, num_rows: int, width: int) -> Children:
        """Siblings differ: each takes a stretch of the vocabulary of its own."""
        stretch = self.info.vocab_size // width
        offsets = self._random.integers(0, stretch, (num_rows, width))
        token_ids = (offsets + stretch * np.arange(width)).astype(np.int32)
        log_probs = np.full((num_rows, width), _CLAIMED_LOG_PROB, np.float32)
        return Children(token_ids, log_probs)
