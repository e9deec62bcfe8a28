"""The dashboard on a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from fastapi import FastAPI

from coordinator.gateway.server import ServerSettings, serve_gateway
from dashboard.app import mount_dashboard
from dashboard.queries import DashboardQueries
from specedge_p2p.tasks import TaskStatus


@asynccontextmanager
async def dashboard(queries: DashboardQueries, *, max_viewers: int = 8) -> AsyncIterator[str]:
    """Its URL without a path."""
    app, stop = FastAPI(docs_url=None, redoc_url=None), trio.Event()
    mount_dashboard(app, queries, stop=stop, max_viewers=max_viewers)

    async def serve(task_status: TaskStatus[str]) -> None:
        settings = ServerSettings(graceful_timeout_s=1)
        await serve_gateway(app, "127.0.0.1:0", stop, settings=settings, task_status=task_status)

    async with trio.open_nursery() as nursery:
        url: str = await nursery.start(serve)
        yield url
        stop.set()
