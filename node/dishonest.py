"""A draft model that lies, for the network's own tests: a lie may cost rows, never a token."""

from collections.abc import Sequence

import numpy as np

from specedge_p2p.lm.ports import Children, LanguageModel, Rows
from specedge_p2p.lm.wrapped import WrappedModel

_CLAIMED_LOG_PROB = -0.05


class GuessingModel(WrappedModel):
    """Keeps the cache of a real model but guesses at random, and claims to be sure of it."""

    def __init__(self, model: LanguageModel, seed: int) -> None:
        super().__init__(model)
        self._random = np.random.default_rng(seed)

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        return [
            self._guess(len(children.token_ids), branch_width)
            for children in super().expand(batch, branch_width)
        ]

    def _guess(self, num_rows: int, width: int) -> Children:
        """Siblings differ: each takes a stretch of the vocabulary of its own."""
        stretch = self.info.vocab_size // width
        offsets = self._random.integers(0, stretch, (num_rows, width))
        token_ids = (offsets + stretch * np.arange(width)).astype(np.int32)
        log_probs = np.full((num_rows, width), _CLAIMED_LOG_PROB, np.float32)
        return Children(token_ids, log_probs)
