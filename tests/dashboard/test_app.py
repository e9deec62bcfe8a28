import gzip
import json
import re

import httpx
import pytest
import trio

from tests.support.dashboards import dashboard
from tests.support.fake_network import FakeQueries

pytestmark = pytest.mark.filterwarnings(
    r"ignore:Async generator '(httpx|httpcore)\.:ResourceWarning"
)


async def test_page_has_a_strict_policy_with_a_fresh_nonce() -> None:
    async with dashboard(FakeQueries()) as url, httpx.AsyncClient(base_url=url) as client:
        nonces = set()
        for _ in range(2):
            answer = await client.get("/dashboard")
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            [nonce] = re.findall(r"'nonce-([^']+)'", policy)
            assert f'nonce="{nonce}"' in answer.text
            nonces.add(nonce)
        assert len(nonces) == 2


async def test_root_leads_to_the_dashboard() -> None:
    async with dashboard(FakeQueries()) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/")
        assert answer.headers["location"] == "/dashboard"


async def test_every_file_that_the_page_names_is_served() -> None:
    async with dashboard(FakeQueries()) as url, httpx.AsyncClient(base_url=url) as client:
        page = (await client.get("/dashboard")).text
        paths = re.findall(r"/dashboard/(?:static|bokeh)/[\w./-]+", page)
        assert len(paths) == 4
        for path in paths:
            assert (await client.get(path)).status_code == 200, path


async def test_scripts_come_packed_or_plain() -> None:
    async with dashboard(FakeQueries()) as url, httpx.AsyncClient(base_url=url) as client:
        page = (await client.get("/dashboard")).text
        path = re.findall(r"/dashboard/bokeh/[\w./-]+", page)[1]
        plain = await client.get(path, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        async with client.stream("GET", path, headers={"accept-encoding": "gzip"}) as packed:
            assert packed.headers["content-encoding"] == "gzip"
            raw = b"".join([chunk async for chunk in packed.aiter_raw()])
        assert gzip.decompress(raw) == plain.content


@pytest.mark.parametrize(
    "path", ["bokeh/0.0.0/bokeh.min.js", "bokeh/x/..%2f..%2fbokeh.min.js", "static/../app.py"]
)
async def test_nothing_else_is_served(path: str) -> None:
    async with dashboard(FakeQueries()) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get(f"/dashboard/{path}")).status_code == 404


async def test_stream_gives_a_snapshot_at_once_and_one_a_second() -> None:
    async with dashboard(FakeQueries(2)) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("GET", "/dashboard/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            tokens = []
            with trio.fail_after(20):
                async for line in lines:
                    if line.startswith("data: "):
                        snapshot = json.loads(line.removeprefix("data: "))
                        tokens.append(snapshot["network"]["num_tokens"])
                    if len(tokens) == 2:
                        break
        assert tokens[0] < tokens[1]


async def test_law7_bounded_viewers() -> None:
    async with (
        dashboard(FakeQueries(), max_viewers=1) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        async with client.stream("GET", "/dashboard/events") as first:
            await anext(first.aiter_lines())
            second = await client.get("/dashboard/events")
            assert second.status_code == 503
            assert "retry-after" in second.headers
        with trio.fail_after(5):
            while True:  # the first one's place comes back
                async with client.stream("GET", "/dashboard/events") as again:
                    if again.status_code == 200:
                        break
                await trio.sleep(0.05)
