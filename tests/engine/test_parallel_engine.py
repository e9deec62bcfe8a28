"""An engine process whose target model is shared out over two: killed ranks, no orphans."""

import os
import signal

import psutil
import pytest
import torch
import trio
from transformers import AutoModelForCausalLM

from coordinator.engine.client import ProcessEngine, open_engine
from coordinator.engine.messages import EngineDied, Ready, StepDone
from coordinator.engine.settings import EngineSettings, RespawnPolicy
from specedge_p2p.lm.files import find_model
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.noise import noise_key, seed_bytes
from tests.reference import decode
from tests.support.engine import batch, open_session

pytestmark = pytest.mark.e2e
pytest.importorskip("accelerate", reason="transformers shares models out with accelerate")

WARM = SamplingParams(temperature=0.8)
MAX_TOKENS = 16
PROMPT = [0, *range(300, 340)]
SETTINGS = EngineSettings(
    "demo-target", dtype="float64", threads=1, cache_rows=1024, tensor_parallel=2
)


def rank_of(engine: ProcessEngine) -> tuple[int, int]:
    """The one follower: its process id, and a descriptor that outlives it."""
    assert engine.pid is not None
    [process] = psutil.Process(engine.pid).children()
    return process.pid, os.pidfd_open(process.pid)


async def end_of(pidfd: int) -> None:
    """Wait for a process's end, whoever reaps it."""
    await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)


async def go_on(engine: ProcessEngine, tokens: list[int], num_steps: int) -> None:
    """Open the session with what is known and verify step by step, up to its end."""
    opened = open_session(
        1, tokens, prompt_length=len(PROMPT), max_tokens=MAX_TOKENS, sampling=WARM, seed=3
    )
    await engine.send(opened)
    for _ in range(num_steps):
        await engine.send(batch([1]))
        message = await engine.receive()
        assert isinstance(message, StepDone), message
        for result in message.results:
            tokens += result.token_ids
            if result.finish:
                return


async def test_law1_output_survives_a_kill_of_a_rank_and_no_rank_survives() -> None:
    torch.set_num_threads(1)
    plain = AutoModelForCausalLM.from_pretrained(find_model("demo-target"), dtype=torch.float64)
    key = noise_key(seed_bytes(3), PROMPT)
    expected = PROMPT + decode(plain.eval(), PROMPT, WARM, key, MAX_TOKENS, eos_token_ids=(1,))
    tokens = list(PROMPT)
    with trio.fail_after(240):
        async with open_engine(SETTINGS, RespawnPolicy(first_wait_s=0.01)) as engine:
            assert isinstance(await engine.receive(), Ready)
            pid, first = rank_of(engine)
            await go_on(engine, tokens, 4)
            os.kill(pid, signal.SIGKILL)
            await engine.send(batch([1]))
            while not isinstance(await engine.receive(), EngineDied):
                await engine.send(batch([1]))
            assert isinstance(await engine.receive(), Ready)
            assert engine.num_restarts == 1
            assert len(PROMPT) < len(tokens) < len(expected)
            await go_on(engine, tokens, 100)
            assert tokens == expected
            _, second = rank_of(engine)
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            assert isinstance(await engine.receive(), EngineDied)
            await end_of(second)
            assert isinstance(await engine.receive(), Ready)
            _, third = rank_of(engine)
        await end_of(third)
        await end_of(first)
