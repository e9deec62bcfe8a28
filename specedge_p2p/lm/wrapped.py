"""A model around a model: everything is passed on, so that a wrapper says only what it changes."""

from collections.abc import Sequence

from specedge_p2p.lm.ports import (
    CacheInfo,
    Children,
    LanguageModel,
    ModelInfo,
    Rows,
    SamplingParams,
    TokenIds,
)
from specedge_p2p.lm.prefix import PageName
from specedge_p2p.noise import NoiseKey


class WrappedModel:
    """Implements `LanguageModel` by another one."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    @property
    def info(self) -> ModelInfo:
        return self._model.info

    @property
    def cache(self) -> CacheInfo:
        return self._model.cache

    @property
    def num_free_rows(self) -> int:
        return self._model.num_free_rows

    def add_sequence(self, sequence: int, sampling: SamplingParams, key: NoiseKey) -> None:
        self._model.add_sequence(sequence, sampling, key)

    def drop_sequence(self, sequence: int) -> None:
        self._model.drop_sequence(sequence)

    def share_prefix(self, sequence: int, names: Sequence[PageName]) -> None:
        self._model.share_prefix(sequence, names)

    def adopt_prefix(self, sequence: int, names: Sequence[PageName]) -> int:
        return self._model.adopt_prefix(sequence, names)

    def num_prefix_rows(self, sequence: int) -> int:
        return self._model.num_prefix_rows(sequence)

    def num_tail_rows(self, sequence: int) -> int:
        return self._model.num_tail_rows(sequence)

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        return self._model.choose(batch)

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        return self._model.expand(batch, branch_width)

    def compact(self, sequence: int, commit: Sequence[int], keep: Sequence[int] = ()) -> None:
        self._model.compact(sequence, commit, keep)
