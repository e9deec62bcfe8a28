"""A whole gateway on a real loopback socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from coordinator.gateway.app import create_app
from coordinator.gateway.auth import ApiKey, Authenticator, KeyLookup, secret_digest
from coordinator.gateway.guard import GuardSettings
from coordinator.gateway.limits import LimitSettings, RequestLimits
from coordinator.gateway.metrics import GatewayMetrics
from coordinator.gateway.server import ServerSettings, serve_gateway
from specedge_p2p.tasks import TaskStatus
from tests.support.fake_generations import FakeGenerations


class FakeKeys:
    def __init__(self, **keys: ApiKey) -> None:
        self._keys = {secret_digest(secret): key for secret, key in keys.items()}

    async def lookup(self, digest: bytes) -> ApiKey | None:
        await trio.lowlevel.checkpoint()
        return self._keys.get(digest)


@dataclass
class Served:
    url: str
    generations: FakeGenerations
    stop: trio.Event
    app: FastAPI
    stopped: trio.Event = field(default_factory=trio.Event)

    async def until(self, num_live: int) -> None:
        """Wait until so many generations run."""
        while self.generations.num_live != num_live:  # noqa: ASYNC110 - seen from outside
            await trio.sleep(0.005)


@asynccontextmanager
async def gateway(
    *,
    keys: KeyLookup | None = None,
    limits: LimitSettings | None = None,
    guard: GuardSettings | None = None,
    server: ServerSettings | None = None,
) -> AsyncIterator[Served]:
    generations, stop = FakeGenerations(), trio.Event()
    app = create_app(
        generations,
        Authenticator(keys),
        RequestLimits(limits or LimitSettings()),
        GatewayMetrics(CollectorRegistry()),
        stop=stop,
        guard=guard,
        num_nodes=lambda: 3,
    )
    async with trio.open_nursery() as nursery:

        async def serve(task_status: TaskStatus[str]) -> None:
            settings = server or ServerSettings(graceful_timeout_s=2, stuck_reader_timeout_s=1)
            await serve_gateway(
                app, "127.0.0.1:0", stop, settings=settings, task_status=task_status
            )
            served.stopped.set()

        served = Served("", generations, stop, app)
        served.url = await nursery.start(serve)
        with trio.fail_after(20):
            yield served
        stop.set()
