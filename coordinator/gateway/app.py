"""The gateway's application: the one place where its parts are put together."""

from collections.abc import Callable

import trio
from fastapi import FastAPI

from coordinator.gateway.auth import Authenticator
from coordinator.gateway.errors import install_error_handlers
from coordinator.gateway.guard import Guard, GuardSettings
from coordinator.gateway.limits import RequestLimits
from coordinator.gateway.metrics import GatewayMetrics
from coordinator.gateway.ports import Generations
from coordinator.gateway.routes import Gateway, router


def create_app(  # noqa: PLR0913 - the parts are put together here
    generations: Generations,
    auth: Authenticator,
    limits: RequestLimits,
    metrics: GatewayMetrics,
    *,
    stop: trio.Event,
    guard: GuardSettings | None = None,
    num_nodes: Callable[[], int] = lambda: 0,
) -> FastAPI:
    """Build the application.

    Args:
        generations: the door to the coordinator.
        auth: who is asking.
        limits: how much one caller may ask.
        metrics: where requests are counted.
        stop: the event that is given to `serve_gateway` too; once set, running answers end with an
            error and new ones are refused.
        guard: limits of a request's size and time.
        num_nodes: nodes joined now, for `/healthz`.
    """
    # No /docs and /redoc: those pages load scripts from elsewhere.
    app = FastAPI(title="SpecEdge P2P", docs_url=None, redoc_url=None)
    app.state.gateway = Gateway(generations, auth, limits, metrics, stop, num_nodes)
    app.include_router(router)
    app.add_middleware(Guard, settings=guard or GuardSettings(), metrics=metrics)
    install_error_handlers(app)
    return app
