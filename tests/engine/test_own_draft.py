"""The engine's own drafting: the output law, when levels come, and the draft model's cache."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.core import EngineCore
from coordinator.engine.measure import StepPrice
from coordinator.engine.messages import (
    CloseSession,
    DropSource,
    LevelTerms,
    StepDone,
    VerificationBatch,
)
from coordinator.engine.own_draft import MAX_CHAIN, MAX_ERRORS
from coordinator.engine.settings import EngineLimits
from specedge_p2p.lm.ports import Children, ModelError, Rows, SamplingParams
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from specedge_p2p.noise import noise_key, seed_bytes
from tests.support.engine import GREEDY, Run, TreeMaker, batch, open_session, vertices

TARGET = ToyParams(vocab_size=32)
TWIN = TARGET  # a draft model that is always right
SKILLED = ToyParams(vocab_size=32, perturbation=0.4)
WARM = SamplingParams(temperature=0.8, top_k=12)
PROMPT = [5, 9, 7, 5, 9, 7, 3]
CHEAP = LevelTerms(level_time_s=0.001, level_row_time_s=0.0, row_time_s=0.0, tokens_per_s=10.0)
DEAR = LevelTerms(level_time_s=1.0, level_row_time_s=0.0, row_time_s=0.0, tokens_per_s=100.0)
FIXED = LevelTerms(1.0, 0.0, 0.0, 1e9, max_levels=3, width=2, is_fixed=True)


class CountingModel(ToyModel):
    """Counts forwards and rows, and fails when told to."""

    num_forwards = 0
    num_rows = 0
    num_failures = 0

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        if self.num_failures:
            self.num_failures -= 1
            super().expand(batch, branch_width)  # its caches are spoiled
            raise ModelError("no more today")
        children = super().expand(batch, branch_width)
        self.num_forwards += 1
        self.num_rows += sum(len(rows.token_ids) for rows in batch)
        return children


def make_draft(params: ToyParams = SKILLED, **options: int) -> CountingModel:
    return CountingModel(params, name="draft", **options)


def make_run(draft: ToyModel | None, limits: EngineLimits | None = None) -> Run:
    return Run(EngineCore(ToyModel(TARGET), _clock(), limits, draft))


def _clock() -> object:
    times = iter(range(10**9))
    return lambda: next(times) / 1000


def decode(
    prompt: Sequence[int], max_tokens: int = 16, sampling: SamplingParams = GREEDY, seed: int = 0
) -> list[int]:
    key = noise_key(seed_bytes(seed), list(prompt))
    return toy_decode(TARGET, prompt, sampling, key, max_tokens)
