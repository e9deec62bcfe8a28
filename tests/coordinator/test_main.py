"""The composition root in real time: gateway, database, overlay and an engine process."""

import json
import os
import signal
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from coordinator import main
from coordinator.settings import CoordinatorSettings
from tests.support.toy_coordinator import running_coordinator, toy_engine

QUESTION = {"model": "demo-target", "prompt": [5, 6, 7], "max_tokens": 5}


@pytest.fixture(autouse=True)
def _full_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has no room for any session."""
    monkeypatch.setattr(main, "_running_engine", partial(toy_engine, max_sessions=0))


async def test_from_ready_to_the_signal_that_ends_it(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            running_coordinator(tmp_path) as running,
            httpx.AsyncClient(base_url=running.endpoints["gateway"], timeout=20) as client,
        ):
            assert (await client.get("/readyz")).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert "specedge_engine_ready 1.0" in metrics
            assert (await client.get("/dashboard")).status_code in (200, 307)

            answer = await client.post("/v1/completions", json=QUESTION)
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["code"] == "too_many_sessions"
            assert int(answer.headers["retry-after"]) >= 1

            async with client.stream(
                "POST", "/v1/completions", json=QUESTION | {"stream": True}
            ) as got:
                lines = [line async for line in got.aiter_lines()]
            assert "too_many_sessions" in "".join(lines)

            os.kill(os.getpid(), signal.SIGINT)
            await running.has_ended.wait()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()  # the context ends a transaction only


class _Named:
    """Stands in for what is asked only for its name and its addresses."""

    peer_id = "12D3KooWSomebody"
    addresses = ("/ip4/127.0.0.1/tcp/4011",)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@db.example:5432/ledger",
        "postgresql://db.example:5432/ledger?user=me&password=hunter2",
    ],
)
def test_the_database_password_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    """Only the program that started the coordinator, and gave the URL, gets it back."""
    nobody: Any = _Named()
    server = main._Server(CoordinatorSettings(tmp_path, url), nobody, nobody, nobody)
    reader, writer = os.pipe()
    with caplog.at_level("INFO"):
        server._say_ready("http://127.0.0.1:8000", writer)
    assert "db.example:5432/ledger" in caplog.text
    assert "hunter2" not in caplog.text
    with os.fdopen(reader) as pipe:
        assert json.load(pipe)["database"] == url
