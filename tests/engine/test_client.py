"""The supervised child process, in real time, on the toy model."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from coordinator.engine.client import ProcessEngine, open_engine
from coordinator.engine.messages import EngineDied, OpenSession, Ready, SessionFailed, StepDone
from coordinator.engine.ports import Engine, EngineError
from coordinator.engine.settings import EngineSettings, RespawnPolicy
from specedge_p2p.lm.toy import toy_decode
from specedge_p2p.noise import noise_key, seed_bytes
from tests.support.engine import GREEDY, batch, open_session, vertices
from tests.support.programs import has_gone
from tests.support.toy_engine import PARAMS

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.support.toy_engine")
QUICK = RespawnPolicy(first_wait_s=0.01, max_wait_s=0.05, max_quick_deaths=3)
PROMPT = [5, 9, 7, 5, 9, 7, 3]
RIGHT = toy_decode(PARAMS, PROMPT, GREEDY, noise_key(seed_bytes(0), PROMPT), 16)


@asynccontextmanager
async def toy_engine(
    model: str = "toy", step_floor_s: float = 0.0, policy: RespawnPolicy = QUICK
) -> AsyncIterator[ProcessEngine]:
    settings = EngineSettings(model=model, step_floor_s=step_floor_s)
    with trio.fail_after(30):
        async with open_engine(settings, policy, COMMAND) as engine:
            yield engine


async def step_done(engine: Engine) -> StepDone:
    message = await engine.receive()
    assert isinstance(message, StepDone), message
    return message


async def decode(engine: Engine, opened: OpenSession, max_steps: int = 100) -> list[int]:
    """All tokens of one session, two steps in flight."""
    tokens = list(opened.token_ids)
    number = opened.session
    await engine.send(opened, batch([number], step_no=0))
    for step_no in range(1, max_steps):
        await engine.send(batch([number], step_no=step_no))
        done = await step_done(engine)
        assert done.step_no == step_no - 1
        for result in done.results:
            tokens += result.token_ids
            if result.finish:
                await step_done(engine)
                return tokens
    raise AssertionError("the session does not end")


async def test_a_child_verifies_and_leaves_with_the_context() -> None:
    async with toy_engine() as engine:
        ready = await engine.receive()
        assert isinstance(ready, Ready)
        assert ready.step_time_s > 0
        assert ready.row_time_s >= 0
        pid = engine.pid
        assert pid is not None
        assert os.getsid(pid) == pid  # a session of its own
        assert await decode(engine, open_session(1, PROMPT)) == PROMPT + RIGHT
    assert engine.pid is None
    assert not psutil.pid_exists(pid)
    with pytest.raises(EngineError, match="stopped"):
        await engine.receive()


async def test_a_child_is_deaf_to_the_keyboard() -> None:
    async with toy_engine() as engine:
        await engine.receive()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGINT)
        assert await decode(engine, open_session(1, PROMPT)) == PROMPT + RIGHT
        assert engine.num_restarts == 0


async def test_law2_one_owner_a_killed_child_comes_back_and_goes_on() -> None:
    async with toy_engine() as engine:
        await engine.receive()
        await engine.send(open_session(1, PROMPT), batch([1]), batch([1], max_rows=0))
        tokens = PROMPT + (await step_done(engine)).results[0].token_ids
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        message = await engine.receive()
        while isinstance(message, StepDone):  # the second step, which its owner never takes
            message = await engine.receive()
        assert isinstance(message, EngineDied)
        assert "SIGKILL" in message.text
        assert not engine.is_ready
        await engine.send(batch([1]))
        assert isinstance(await engine.receive(), Ready)
        assert engine.is_ready
        assert engine.num_restarts == 1
        reopened = open_session(1, tokens, prompt_length=len(PROMPT))
        assert await decode(engine, reopened) == PROMPT + RIGHT


async def test_a_padded_step_hears_what_arrives_meanwhile() -> None:
    async with toy_engine(step_floor_s=3.0) as engine:
        ready = await engine.receive()
        assert isinstance(ready, Ready)
        assert ready.step_time_s >= 3.0
        await engine.send(open_session(1, PROMPT), batch([1]), batch([1], step_no=2, sources=[3]))
        await trio.sleep(0.1)  # in the middle of the first step, while the second one waits
        await engine.send(open_session(2, []), vertices(1, 3, len(PROMPT), RIGHT[:4]))
        failed = await engine.receive()
        assert isinstance(failed, SessionFailed)
        first, second = await step_done(engine), await step_done(engine)
        assert first.ended_s - first.started_s >= 3.0
        assert second.results[0].token_ids == RIGHT[1:5]


async def test_many_messages_go_through() -> None:
    async with toy_engine() as engine:
        await engine.receive()
        await engine.send(open_session(1, [5] * 3000, max_tokens=1000))
        await engine.send(*[vertices(1, 3, 1, [4] * 500, tree_no=n + 1) for n in range(200)])
        await engine.send(batch([1], prefill_tokens=10_000))
        assert len((await step_done(engine)).results[0].token_ids) == 1


async def test_a_model_that_cannot_be_loaded_is_one_clear_line() -> None:
    async with toy_engine("missing") as engine:
        with pytest.raises(EngineError, match=r"^there is no model named missing$"):
            await engine.receive()
        assert not engine.is_ready


async def test_a_crash_loop_ends() -> None:
    async with toy_engine("dies") as engine:
        for _ in range(QUICK.max_quick_deaths - 1):
            died = await engine.receive()
            assert isinstance(died, EngineDied)
            assert "exit code 3" in died.text
        with pytest.raises(EngineError, match="3 times in a row"):
            await engine.receive()


async def test_a_child_that_does_not_leave_is_killed() -> None:
    policy = RespawnPolicy(close_wait_s=0.2)
    async with toy_engine(policy=policy) as engine:
        await engine.receive()
        pid = engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # a stopped process does not even answer SIGTERM
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 5
    assert not psutil.pid_exists(pid)


@pytest.mark.e2e
def test_a_child_dies_with_its_parent() -> None:
    script = textwrap.dedent("""
        import sys, trio
        from coordinator.engine.client import open_engine
        from coordinator.engine.settings import EngineSettings

        async def main():
            async with open_engine(EngineSettings("toy"), command=sys.argv[1:]) as engine:
                await engine.receive()
                print(engine.pid, flush=True)
                await trio.sleep_forever()

        trio.run(main)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script, *COMMAND], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        assert has_gone(pid)
