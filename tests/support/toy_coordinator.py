"""The real coordinator, all of it but the target model: its engine process runs the toy."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from coordinator.engine.client import ProcessEngine
from coordinator.engine.settings import EngineSettings, RespawnPolicy
from coordinator.main import run_coordinator
from coordinator.settings import CoordinatorSettings

COMMAND = (sys.executable, "-m", "tests.support.toy_engine")


@asynccontextmanager
async def toy_engine(
    _settings: CoordinatorSettings, model: str = "toy", max_sessions: int = 64
) -> AsyncIterator[ProcessEngine]:
    """Stands in for `coordinator.main._running_engine`."""
    policy = RespawnPolicy(max_quick_deaths=2, first_wait_s=0.01)
    engine = ProcessEngine(
        EngineSettings(model=model, device="cpu", max_sessions=max_sessions),
        policy,
        COMMAND,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        nursery.cancel_scope.cancel()


@dataclass(slots=True)
class Running:
    endpoints: dict[str, str]
    has_ended: trio.Event


@asynccontextmanager
async def running_coordinator(home: Path) -> AsyncIterator[Running]:
    """`serve` on loopback from ready to its end; the caller patches the engine in."""
    settings = CoordinatorSettings(home, str(home / "ledger.sqlite"), port=0)
    reader, writer = os.pipe()
    has_ended = trio.Event()

    async def run() -> None:
        await run_coordinator(settings, writer)
        has_ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        async with trio.lowlevel.FdStream(reader) as pipe:
            said = b"".join([chunk async for chunk in pipe])
        yield Running(json.loads(said), has_ended)
        nursery.cancel_scope.cancel()
