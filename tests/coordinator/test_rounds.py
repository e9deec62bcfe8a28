"""Rounds against an engine whose every word is the test's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from coordinator.assembly import Coordinator, Parts
from coordinator.engine.messages import (
    CloseSession,
    EngineDied,
    EntryResult,
    FromEngine,
    OpenSession,
    Ready,
    StepDone,
    ToEngine,
    TokenSource,
    VerificationBatch,
)
from coordinator.gateway.ports import GenerationRequest, Refused
from coordinator.ledger.memory import MemoryLedger
from coordinator.rounds import MAX_DEATHS, STEPS_IN_FLIGHT
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.toy_text import ToyText
from specedge_p2p.overlay.memory import MemoryNetwork
from tests.support.swarm import identity

READY = Ready("toy", 32, 4096, [1], "float64", b"", step_time_s=0.04, row_time_s=0.001)
REQUEST = GenerationRequest("toy", (2, 3), SamplingParams(), 1, 8)


class ScriptedEngine:
    """Implements `ports.Engine`."""

    def __init__(self) -> None:
        self.is_ready = False
        self.num_restarts = 0
        self.sent: list[ToEngine] = []
        self._say, self._hear = trio.open_memory_channel[FromEngine](100)

    async def say(self, message: FromEngine) -> None:
        self.is_ready = not isinstance(message, EngineDied)
        self._say.send_nowait(message)
        await trio.testing.wait_all_tasks_blocked()

    async def send(self, *messages: ToEngine) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += messages

    async def receive(self) -> FromEngine:
        return await self._hear.receive()

    def take(self, kind: type) -> list[ToEngine]:
        """What was sent of a kind since the last call."""
        found = [message for message in self.sent if isinstance(message, kind)]
        self.sent = [message for message in self.sent if not isinstance(message, kind)]
        return found

    async def decide(self, session: int, position: int, token: int) -> None:
        result = EntryResult(session, position, [token], [TokenSource()], 0, 0)
        await self.say(StepDone(1, 0.0, 0.1, 0.0, 1, [result]))


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Coordinator, ScriptedEngine]]:
    engine, me = ScriptedEngine(), identity(1)
    parts = Parts(
        engine=engine,
        overlay=MemoryNetwork().join(me.peer_id),
        ledger=MemoryLedger(me, trio.current_time),
        codec=ToyText(32),
        model="toy",
        clock=trio.current_time,
    )
    coordinator = Coordinator(parts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coordinator.run)
        await engine.say(READY)
        yield coordinator, engine
        nursery.cancel_scope.cancel()


async def test_steps_in_flight_are_bounded_and_begin_anew_with_an_engine() -> None:
    async with running() as (coordinator, engine), coordinator.generations.generate(REQUEST):
        await trio.testing.wait_all_tasks_blocked()
        assert len(engine.take(VerificationBatch)) == STEPS_IN_FLIGHT
        await engine.say(EngineDied("killed"))
        await engine.say(READY)
        assert len(engine.take(VerificationBatch)) == STEPS_IN_FLIGHT


async def test_law2_one_owner_an_engine_that_died_is_given_what_is_committed() -> None:
    async with running() as (coordinator, engine), coordinator.generations.generate(REQUEST):
        await trio.testing.wait_all_tasks_blocked()
        (opened,) = engine.take(OpenSession)
        assert isinstance(opened, OpenSession)
        await engine.decide(opened.session, 2, 7)
        await engine.say(EngineDied("killed"))
        await engine.say(READY)
        (again,) = engine.take(OpenSession)
        assert isinstance(again, OpenSession)
        assert (again.session, again.token_ids, again.prompt_length) == (
            opened.session,
            [2, 3, 7],
            2,
        )


async def test_a_closed_session_is_closed_at_the_engine_and_its_results_are_dropped() -> None:
    async with running() as (coordinator, engine):
        async with coordinator.generations.generate(REQUEST):
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert engine.take(CloseSession) == [CloseSession(1)]
        await engine.decide(1, 2, 7)  # was on its way
        assert coordinator.load.num_tokens == 0


async def test_a_session_that_no_engine_survives_fails_and_others_live() -> None:
    async with (
        running() as (coordinator, engine),
        coordinator.generations.generate(REQUEST) as deadly,
        coordinator.generations.generate(REQUEST) as harmless,
    ):
        await trio.testing.wait_all_tasks_blocked()
        for death in range(MAX_DEATHS):
            await engine.decide(2, 2 + death, 7)
            await engine.say(EngineDied("killed"))
            await engine.say(READY)
        with pytest.raises(Refused) as refused:
            await anext(deadly)
        assert refused.value.code == "engine_failed"
        engine.take(OpenSession)
        assert (await anext(harmless)).tokens  # type: ignore[union-attr]
        await engine.say(EngineDied("killed"))
        await engine.say(READY)
        assert [x.session for x in engine.take(OpenSession)] == [2]  # type: ignore[union-attr]


async def test_a_stopped_session_takes_no_further_results_while_its_client_reads() -> None:
    stopped = replace(REQUEST, stop=(ToyText(32).decode([7]),))
    async with running() as (coordinator, engine), coordinator.generations.generate(stopped):
        await trio.testing.wait_all_tasks_blocked()
        await engine.decide(1, 2, 7)
        await engine.decide(1, 3, 8)  # its step was queued already
        assert coordinator.load.num_tokens == 1
