"""The inline engine in virtual time: queued steps, late messages, crashes."""

import pytest
import trio
from trio.testing import MockClock

from coordinator.engine.core import EngineCore
from coordinator.engine.inline import InlineEngine
from coordinator.engine.messages import EngineDied, Ready, SessionFailed, StepDone
from coordinator.engine.ports import Engine, EngineError
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from specedge_p2p.noise import noise_key, seed_bytes
from tests.support.engine import GREEDY, batch, open_session, vertices

PARAMS = ToyParams(vocab_size=32)
PROMPT = [5, 9, 7, 5, 9, 7, 3]
RIGHT = toy_decode(PARAMS, PROMPT, GREEDY, noise_key(seed_bytes(0), PROMPT), 16)


def make_engine(respawn_s: float = 0.5) -> InlineEngine:
    def make_core() -> EngineCore:
        return EngineCore(ToyModel(PARAMS), trio.current_time)

    return InlineEngine(make_core, lambda rows, sequences: 0.1 + 0.01 * rows, respawn_s=respawn_s)


async def step_done(engine: Engine) -> StepDone:
    message = await engine.receive()
    assert isinstance(message, StepDone)
    return message


async def test_steps_take_their_cost_one_after_the_other(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    engine = make_engine()
    await nursery.start(engine.run)
    assert not engine.is_ready
    ready = await engine.receive()
    assert isinstance(ready, Ready)
    assert engine.is_ready
    assert ready.step_time_s == pytest.approx(0.11)
    assert ready.row_time_s == pytest.approx(0.01)
    started_s = trio.current_time()
    await engine.send(open_session(1, PROMPT), batch([1]), batch([1], step_no=2, max_rows=0))
    first, second = await step_done(engine), await step_done(engine)
    assert (first.step_no, second.step_no) == (1, 2)
    assert first.ended_s - started_s == pytest.approx(0.1 + 0.01 * len(PROMPT))
    assert second.started_s == pytest.approx(first.ended_s)
    assert second.ended_s - second.started_s == pytest.approx(0.11)
    assert [r.token_ids for d in (first, second) for r in d.results] == [RIGHT[:1], RIGHT[1:2]]


async def test_what_arrives_during_a_step_is_bound_by_the_next(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    engine = make_engine()
    await nursery.start(engine.run)
    await engine.receive()
    await engine.send(open_session(1, PROMPT), batch([1]), batch([1], step_no=2, sources=[3]))
    await trio.sleep(0.05)  # the first step runs and the second one waits behind it
    await engine.send(vertices(1, 3, len(PROMPT), RIGHT[:4]))
    await step_done(engine)
    done = await step_done(engine)
    assert done.results[0].token_ids == RIGHT[1:5]


async def test_a_full_queue_of_steps_holds_the_sender_up(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    engine = make_engine()
    await nursery.start(engine.run)
    await engine.receive()
    await engine.send(open_session(1, PROMPT, max_tokens=1000))
    num_sent = 0
    with trio.move_on_after(0.01):
        while True:
            await engine.send(batch([1], step_no=num_sent, max_rows=0))
            num_sent += 1
    assert 4 < num_sent < 100
    for step_no in range(num_sent):
        assert (await step_done(engine)).step_no == step_no


async def test_failures_come_without_a_step(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    engine = make_engine()
    await nursery.start(engine.run)
    await engine.receive()
    await engine.send(open_session(1, []))
    failed = await engine.receive()
    assert isinstance(failed, SessionFailed)
    assert failed.session == 1


async def test_law2_one_owner_a_crash_loses_nothing_but_time(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    engine = make_engine(respawn_s=2.0)
    await nursery.start(engine.run)
    await engine.receive()
    await engine.send(open_session(1, PROMPT), batch([1]), batch([1], max_rows=0))
    tokens = PROMPT + (await step_done(engine)).results[0].token_ids
    died_at_s = trio.current_time()
    engine.crash()
    assert not engine.is_ready
    await engine.send(batch([1]))  # nobody is there
    assert isinstance(await engine.receive(), EngineDied)
    await engine.send(batch([1]))
    assert isinstance(await engine.receive(), Ready)
    assert trio.current_time() - died_at_s == pytest.approx(2.0)
    assert engine.num_restarts == 1
    await engine.send(
        open_session(1, tokens, prompt_length=len(PROMPT)),
        *[batch([1], step_no=n) for n in range(4)],
    )
    for _ in range(4):
        tokens += (await step_done(engine)).results[0].token_ids
    assert tokens == PROMPT + RIGHT[: len(tokens) - len(PROMPT)]
    assert len(tokens) >= len(PROMPT) + 5


async def test_a_sender_that_waits_is_freed_by_a_crash(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    engine = make_engine()
    await nursery.start(engine.run)
    await engine.receive()
    await engine.send(open_session(1, PROMPT))

    async def crash_soon() -> None:
        await trio.sleep(0.05)
        engine.crash()

    nursery.start_soon(crash_soon)
    with trio.fail_after(1):
        for _ in range(200):
            await engine.send(batch([1]))
    assert isinstance(await engine.receive(), EngineDied)


async def test_a_ready_of_a_past_life_does_not_count(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    engine = make_engine()
    await nursery.start(engine.run)
    await trio.sleep(0.1)
    engine.crash()
    await trio.sleep(0.1)
    assert isinstance(await engine.receive(), Ready)
    assert not engine.is_ready
    assert isinstance(await engine.receive(), EngineDied)
    assert isinstance(await engine.receive(), Ready)
    assert engine.is_ready


async def test_a_stopped_engine_says_so(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        await engine.receive()
        nursery.cancel_scope.cancel()
    assert not engine.is_ready
    engine.crash()
    with pytest.raises(EngineError, match="stopped"):
        await engine.receive()
