"""An engine on a real transformer that serves thousands of sessions needs no more memory for it."""

from random import Random

import psutil
import pytest
import torch

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import CloseSession
from coordinator.engine.settings import EngineLimits
from tests.reference import decode
from tests.support.cores import Clock
from tests.support.engine import GREEDY, Run, batch, open_session
from tests.support.tiny_llama import tiny_llama, tiny_runner

AT_ONCE = 16
CACHE_ROWS = 512
"""Less than so many sessions want, so that pages go from hand to hand from the start."""
MAX_GROWTH_BYTES = 8 << 20


class Life:
    """One engine and the sessions that come to it, a few at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = tiny_runner(cache_rows=CACHE_ROWS)
        self.run = Run(EngineCore(self.model, Clock(), EngineLimits(max_sessions=AT_ONCE)))
        self.plain = tiny_llama()
        self.random = Random(3)
        self.num_served = self.num_preempted = self.num_reused = 0
        self.beginnings = [
            [0, *(self.random.randrange(2, 60) for _ in range(64))] for _ in range(4)
        ]

    def serve(self, num_sessions: int) -> None:
        for _ in range(0, num_sessions, AT_ONCE):
            self._serve_some()

    def _serve_some(self) -> None:
        run, random = self.run, self.random
        first = self.num_served
        for number in range(first, first + AT_ONCE):
            prompt = random.choice(self.beginnings)[: random.randrange(1, 65)]
            length = random.choice([1, 8, 24, 100])
            run.open(open_session(number, prompt, max_tokens=length, ignore_eos=True))
        while run.live():
            done = run.step(batch(run.live(), prefill_tokens=64))
            self.num_preempted += len(done.preempted)
            self.num_reused += done.num_reused_rows
        assert run.core.take_failures() == []
        self._check_one(first)
        for number in range(first, first + AT_ONCE):
            run.core.handle(CloseSession(number))
        self.num_served += AT_ONCE
        run.tokens, run.finish, run.results = {}, {}, {}
        assert run.core.num_sessions == 0
        assert self.model.num_free_rows == CACHE_ROWS

    def _check_one(self, number: int) -> None:
        tokens = self.run.tokens[number]
        session = self.run.core.session(number)
        assert session is not None
        num_new = sum(len(result.token_ids) for result in self.run.results[number])
        prompt = tokens[: len(tokens) - num_new]
        assert tokens == prompt + decode(self.plain, prompt, GREEDY, session.noise_key, num_new)


@pytest.mark.parametrize(
    ("num_warm", "num_more"),
    [(64, 96), pytest.param(400, 2000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_law7_bounded_memory_stays_level_over_thousands_of_sessions(
    num_warm: int, num_more: int
) -> None:
    life, process = Life(), psutil.Process()
    life.serve(num_warm)
    before = process.memory_info().rss
    life.serve(num_more)
    grown = process.memory_info().rss - before
    assert grown < MAX_GROWTH_BYTES, f"{grown / 2**20:.1f} MiB more"
    assert life.num_preempted > 0
    assert life.num_reused > 0
