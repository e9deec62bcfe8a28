"""The engine's core on real transformers: a small shared cache, and forwards that fail."""

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import OpenSession
from specedge_p2p.demo.models import demo_path
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import LanguageModel, SamplingParams
from specedge_p2p.lm.text import Tokenizer
from tests.reference import decode
from tests.support.cores import Clock
from tests.support.engine import GREEDY, Run, batch, open_session
from tests.support.tiny_llama import tiny_llama, tiny_runner

WARM = SamplingParams(temperature=0.8)
TEXT = (
    "import os\nimport sys\n\n\nclass Stack:\n    def __init__(self):\n        self._items = []\n\n"
)
ENDINGS = (
    "",
    "    def push(self, item):\n",
    "    def pop(self):\n",
    "def main():\n",
    "# Add ",
    "x",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def opened(
    number: int, prompt: Sequence[int], max_tokens: int, sampling: SamplingParams
) -> OpenSession:
    return open_session(
        number, prompt, max_tokens=max_tokens, sampling=sampling, seed=number, ignore_eos=True
    )


def check(run: Run, plain: Any, sessions: Sequence[OpenSession]) -> None:  # noqa: ANN401
    for session in sessions:
        expected = decode(
            plain, session.token_ids, session.sampling, session.noise_key, session.max_tokens
        )
        assert run.tokens[session.session] == list(session.token_ids) + expected


def test_law1_output_of_the_demo_pair_on_a_quarter_of_the_cache() -> None:
    """float64: sessions with one beginning, of mixed length, on a cache for few of them."""
    tokenizer = Tokenizer.load("demo-draft")
    prompts = [tokenizer.encode(TEXT + ending) for ending in ENDINGS] * 2
    lengths = [160, 4, 90, 200, 12, 40] * 2
    num_rows = sum(len(p) + n for p, n in zip(prompts, lengths, strict=True))
    model = load_model("demo-draft", dtype="float64", threads=1, cache_rows=num_rows // 4)
    run = Run(EngineCore(model, Clock()))
    sessions = [
        opened(number, prompt, length, (GREEDY, WARM)[number % 2])
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    for session in sessions:
        run.open(session)
    num_preempted = num_reused = 0
    while run.live():
        done = run.step(batch(run.live(), prefill_tokens=48, max_rows=4))
        num_preempted += len(done.preempted)
        num_reused += done.num_reused_rows
    assert run.core.take_failures() == []
    assert num_preempted > 0
    assert num_reused >= 11 * 16 * (len(tokenizer.encode(TEXT)) // 16 - 1)
    plain = AutoModelForCausalLM.from_pretrained(demo_path("demo-draft"), dtype=torch.float64)
    check(run, plain.eval(), sessions)
    assert model.num_free_rows == model.cache.num_rows


BAD = [0, 60, 9]


class Injected:
    """Makes the transformer below a runner raise when its rows hold the prompt of `BAD`."""

    def __init__(self, model: LanguageModel, error: Exception) -> None:
        self.error = error
        self.is_on = True
        inner: Any = model
        self._forward = inner._model.forward
        inner._model.forward = self

    def __call__(self, **arguments: Any) -> Any:  # noqa: ANN401
        is_bad = (arguments["input_ids"] == BAD[1]) & (arguments["position_ids"] == 1)
        if self.is_on and is_bad.any():
            raise self.error
        return self._forward(**arguments)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match\nand more"), RuntimeError()])
def test_a_step_that_raises_costs_one_session_one_clear_line(error: RuntimeError) -> None:
    model = tiny_runner(cache_rows=512)
    Injected(model, error)
    run = Run(EngineCore(model, Clock()))
    sessions = [opened(n, [0, 7 + n, 9], 12, GREEDY) for n in (1, 2)]
    for session in (*sessions, opened(3, BAD, 12, GREEDY)):
        run.open(session)
    run.step(batch([1, 2, 3]))
    (failure,) = run.core.take_failures()
    assert (failure.session, failure.code) == (3, "model_error")
    assert failure.text.startswith("the forward failed: ")
    assert "\n" not in failure.text
    run.finish[3] = "failed"
    run.finish_all()
    check(run, tiny_llama(), sessions)


def test_a_forward_without_memory_is_one_clear_line_and_others_go_on() -> None:
    model = tiny_runner(cache_rows=512)
    injected = Injected(model, torch.OutOfMemoryError("CUDA out of memory"))
    run = Run(EngineCore(model, Clock()))
    sessions = [opened(n, [0, 7 + n, 9], 12, GREEDY) for n in (1, 2)]
    for session in sessions:
        run.open(session)
    run.open(opened(3, BAD, 12, GREEDY))
    for _ in range(14):
        run.step(batch([1, 2, 3]))
    (failure,) = run.core.take_failures()
    assert (failure.session, failure.code) == (3, "out_of_cache")
    assert "no memory is left for the forward" in failure.text
    check(run, tiny_llama(), sessions)
    injected.is_on = False
    again = opened(4, BAD, 12, GREEDY)
    run.finish = {}
    run.open(again)
    run.finish_all()
    check(run, tiny_llama(), [again])


def test_an_error_of_the_device_ends_the_process() -> None:
    """Nothing can be computed after it: the engine is started again with the committed tokens."""
    model = tiny_runner(cache_rows=512)
    Injected(model, torch.AcceleratorError("an illegal memory access"))
    core = EngineCore(model, Clock())
    core.handle(opened(1, BAD, 12, GREEDY))
    with pytest.raises(torch.AcceleratorError):
        core.step(batch([1]))


def test_law1_output_of_random_batches_on_a_small_shared_cache() -> None:
    random = Random(11)
    model = tiny_runner(cache_rows=256)
    run = Run(EngineCore(model, Clock()))
    beginning = [0, *(random.randrange(2, 60) for _ in range(40))]
    sessions = []
    for number in range(14):
        prompt = [*beginning[: random.randrange(1, 41)], random.randrange(2, 60)]
        sessions.append(opened(number, prompt, random.choice([3, 20, 90]), WARM))
        run.open(sessions[-1])
        for _ in range(random.randrange(5)):
            run.step(batch(run.live(), prefill_tokens=random.choice([5, 50])))
    num_preempted = 0
    while run.live():
        num_preempted += len(run.step(batch(run.live(), prefill_tokens=20)).preempted)
    assert num_preempted > 0
    check(run, tiny_llama(), sessions)
