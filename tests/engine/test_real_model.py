"""The real target in a real engine process, against the plain decoder on the unmodified model."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import trio
from transformers import AutoModelForCausalLM

from coordinator.engine.client import ProcessEngine, open_engine
from coordinator.engine.messages import (
    EngineDied,
    LevelTerms,
    OpenSession,
    Ready,
    StepDone,
    TokenSource,
)
from coordinator.engine.ports import EngineError
from coordinator.engine.settings import EngineSettings, RespawnPolicy
from specedge_p2p.lm.files import find_model
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.text import Tokenizer
from tests.reference import decode
from tests.support.engine import GREEDY, batch, open_session, vertices

pytestmark = pytest.mark.e2e

WARM = SamplingParams(temperature=0.8)
MAX_TOKENS = 24
SETTINGS = EngineSettings("demo-target", dtype="float64", threads=1, cache_rows=4096)
TEXTS = (
    "import os\nimport sys\n\ndef main(argv):\n    for name in argv:\n",
    "class Stack:\n    def __init__(self):\n        self._items = []\n\n    def push(self, ",
)


@pytest.fixture(scope="module")
def plain_model() -> torch.nn.Module:
    torch.set_num_threads(1)  # the child computes too, and the machine may have two cores
    folder = find_model("demo-target")
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return model.eval()


@pytest.fixture(scope="module")
def sessions() -> list[OpenSession]:
    tokenizer = Tokenizer.load("demo-target")
    prompts = [tokenizer.encode(text) for text in TEXTS]
    return [
        open_session(1, prompts[0], max_tokens=MAX_TOKENS),
        open_session(2, prompts[1], max_tokens=MAX_TOKENS),
        open_session(3, prompts[0], max_tokens=MAX_TOKENS, sampling=WARM, seed=7),
    ]


@pytest.fixture(scope="module")
def expected(plain_model: torch.nn.Module, sessions: list[OpenSession]) -> dict[int, list[int]]:
    return {
        opened.session: list(opened.token_ids)
        + decode(
            plain_model,
            opened.token_ids,
            opened.sampling,
            opened.noise_key,
            MAX_TOKENS,
            eos_token_ids=(1,),
        )
        for opened in sessions
    }


class Owner:
    """The coordinator's part: owns the tokens, keeps two steps in flight."""

    def __init__(
        self,
        engine: ProcessEngine,
        sessions: Sequence[OpenSession],
        levels: LevelTerms | None = None,
        max_sessions: int = 0,
    ) -> None:
        self.engine = engine
        self.levels, self.max_sessions = levels, max_sessions
        self.num_levels = 0
        self.opened = {opened.session: opened for opened in sessions}
        self.tokens = {opened.session: list(opened.token_ids) for opened in sessions}
        self.sources: list[TokenSource] = []
        self.is_finished = dict.fromkeys(self.opened, False)

    async def open_all(self) -> None:
        for number, opened in self.opened.items():
            await self.engine.send(
                open_session(
                    number,
                    self.tokens[number],
                    prompt_length=opened.prompt_length,
                    max_tokens=opened.max_tokens,
                    sampling=opened.sampling,
                    seed=7 if opened.sampling == WARM else 0,
                )
            )

    async def queue_step(self) -> None:
        step = batch(
            sorted(self.opened),
            sources=[1, 2],
            prefill_tokens=16,
            max_sessions=self.max_sessions,
            levels=self.levels,
        )
        await self.engine.send(step)

    async def take(self) -> bool:
        """Take one message; False when it says that the engine died."""
        message = await self.engine.receive()
        if isinstance(message, EngineDied):
            return False
        assert isinstance(message, StepDone), message
        self.num_levels += message.num_levels
        for result in message.results:
            known = self.tokens[result.session]
            assert result.from_position == len(known)
            known += result.token_ids
            self.sources += result.sources
            self.is_finished[result.session] = bool(result.finish)
        return True

    async def run(self) -> None:
        await self.queue_step()
        while not all(self.is_finished.values()):
            await self.queue_step()
            assert await self.take()
        assert await self.take()


async def test_law1_output_of_a_real_process_is_plain_transformers(
    sessions: list[OpenSession], expected: dict[int, list[int]]
) -> None:
    with trio.fail_after(120):
        async with open_engine(SETTINGS) as engine:
            assert isinstance(await engine.receive(), Ready)
            owner = Owner(engine, sessions)
            await owner.open_all()
            for opened in sessions:  # one node that knows everything, one that is mostly wrong
                length = opened.prompt_length
                right = expected[opened.session][length:]
                await engine.send(vertices(opened.session, 1, length, right[:9]))
                wrong = [token + 3 for token in right[:9]]
                await engine.send(vertices(opened.session, 2, length, right[:2] + wrong))
            await owner.run()
    assert owner.tokens == expected
    assert sum(source.source == 1 for source in owner.sources) >= 3 * 6


async def test_law1_output_is_the_same_when_the_engine_drafts_too(
    sessions: list[OpenSession], expected: dict[int, list[int]]
) -> None:
    """Levels of the real draft model, below a node's guesses and by themselves, in capped steps."""
    terms = LevelTerms(0.001, 0.0, 0.0, tokens_per_s=10.0, width=4)
    with trio.fail_after(90):
        async with open_engine(replace(SETTINGS, draft_model="demo-draft")) as engine:
            ready = await engine.receive()
            assert isinstance(ready, Ready)
            assert 0 < ready.level_time_s < ready.step_time_s
            owner = Owner(engine, sessions, terms, max_sessions=2)
            await owner.open_all()
            opened = sessions[0]
            right = expected[opened.session][opened.prompt_length :]
            await engine.send(vertices(opened.session, 1, opened.prompt_length, right[:5]))
            await owner.run()
    assert owner.tokens == expected
    assert owner.num_levels > 3
    assert sum(source.own for source in owner.sources) >= 3 * 8


async def test_law1_output_survives_a_kill_of_the_engine(
    sessions: list[OpenSession], expected: dict[int, list[int]]
) -> None:
    with trio.fail_after(120):
        async with open_engine(SETTINGS, RespawnPolicy(first_wait_s=0.01)) as engine:
            await engine.receive()
            owner = Owner(engine, sessions)
            await owner.open_all()
            for _ in range(6):
                await owner.queue_step()
                assert await owner.take()
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            await owner.queue_step()
            while await owner.take():
                pass
            assert isinstance(await engine.receive(), Ready)
            assert any(len(owner.tokens[s.session]) > s.prompt_length for s in sessions)
            await owner.open_all()
            await owner.run()
    assert owner.tokens == expected


async def test_an_unknown_model_is_one_clear_line(tmp_path: os.PathLike[str]) -> None:
    with trio.fail_after(120):
        async with open_engine(EngineSettings(str(tmp_path))) as engine:
            with pytest.raises(EngineError) as caught:
                await engine.receive()
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path) in str(caught.value)


def test_the_reference_is_not_trivial(expected: dict[int, list[int]]) -> None:
    assert expected[1] != expected[3]
    assert GREEDY != WARM
