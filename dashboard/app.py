"""The dashboard's routes: one page, its files, one stream."""

import gzip
import secrets
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import bokeh
import trio
from bokeh.util.paths import bokehjs_path
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from dashboard.queries import DashboardQueries
from dashboard.snapshot import Feed
from dashboard.stream import SnapshotStream, Viewers

PREFIX = "/dashboard"
MAX_VIEWERS = 64
PERIOD_S = 1.0

_HERE = Path(__file__).parent
_BOKEH_FILES = ("bokeh.min.js", "bokeh-api.min.js")
_COMMON_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def content_security_policy(nonce: str) -> str:
    """Only this server's own files. The nonce is for the style sheets that BokehJS makes."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            f"style-src 'self' 'nonce-{nonce}'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


class _Scripts:
    """BokehJS from the installed package, compressed once."""

    def __init__(self) -> None:
        self._folder = Path(bokehjs_path()) / "js"
        self._packed = cache(self._pack)

    def _pack(self, name: str) -> bytes:
        return gzip.compress((self._folder / name).read_bytes(), compresslevel=6)

    async def response(self, name: str, accepts_gzip: bool) -> Response:
        headers = _COMMON_HEADERS | {
            # The version is part of the address.
            "cache-control": "public, max-age=31536000, immutable",
            "vary": "accept-encoding",
        }
        if accepts_gzip:
            headers["content-encoding"] = "gzip"
            body = await trio.to_thread.run_sync(self._packed, name)
        else:
            body = await trio.Path(self._folder / name).read_bytes()
        return Response(body, headers=headers, media_type="text/javascript")


class _Page:
    def __init__(self) -> None:
        environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
        )
        self._template = environment.get_template("network.html")

    def response(self) -> Response:
        nonce = secrets.token_urlsafe(16)
        scripts = [f"{PREFIX}/bokeh/{bokeh.__version__}/{name}" for name in _BOKEH_FILES]
        body = self._template.render(prefix=PREFIX, nonce=nonce, scripts=scripts)
        headers = _COMMON_HEADERS | {
            "content-security-policy": content_security_policy(nonce),
            "cache-control": "no-store",
        }
        return Response(body, headers=headers, media_type="text/html")


def create_router(feed: Feed, viewers: Viewers, stop: trio.Event) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    page, scripts = _Page(), _Scripts()

    @router.get("/")
    async def root() -> Response:
        return RedirectResponse(PREFIX)

    @router.get(PREFIX)
    async def network() -> Response:
        return page.response()

    @router.get(f"{PREFIX}/events")
    async def events() -> Response:
        if viewers.is_full or stop.is_set():
            return Response("Too many viewers.\n", 503, {"retry-after": "5"})
        return SnapshotStream(feed, viewers, stop)

    @router.get(f"{PREFIX}/bokeh/{{version}}/{{name}}")
    async def bokeh_script(version: str, name: str, request: Request) -> Response:
        if version != bokeh.__version__ or name not in _BOKEH_FILES:
            return Response("No such file.\n", 404)
        return await scripts.response(name, "gzip" in request.headers.get("accept-encoding", ""))

    return router


def mount_dashboard(
    app: FastAPI,
    queries: DashboardQueries,
    *,
    stop: trio.Event | None = None,
    clock: Callable[[], float] = time.time,
    max_viewers: int = MAX_VIEWERS,
) -> None:
    """Add the dashboard to an application, at `/dashboard`; `/` leads there.

    Args:
        app: the gateway's application.
        queries: what is shown.
        stop: set when the server stops; open streams then end at once.
        clock: Unix seconds.
        max_viewers: streams open at the same time; one more is answered 503.
    """
    stop = trio.Event() if stop is None else stop
    feed = Feed(queries, clock, PERIOD_S)
    app.include_router(create_router(feed, Viewers(max_viewers), stop))
    static = partial(StaticFiles, directory=_HERE / "static")
    app.mount(f"{PREFIX}/static", static(), name="dashboard-static")
