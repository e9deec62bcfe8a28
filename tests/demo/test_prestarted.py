"""Prestarted processes are like others, though they are forked."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from specedge_p2p.demo.processes import Child
from tests.support.prestarted import PRELOADED, spawn_prestarted
from tests.support.programs import program, said, until_gone, until_serving

SERVER = ["http.server", "--bind", "127.0.0.1", "0"]
STARTER = """
import sys, trio
from pathlib import Path
from tests.support.prestarted import spawn_prestarted
child = spawn_prestarted("a child", sys.argv[2:], Path(sys.argv[1]))
print(child.process.pid, flush=True)
trio.run(trio.sleep_forever)
"""


@asynccontextmanager
async def serving(log_path: Path) -> AsyncIterator[Child]:
    child = spawn_prestarted("a child", SERVER, log_path)
    try:
        await until_serving(psutil.Process(child.process.pid), log_path)
        yield child
    finally:
        child.process.kill()


def test_what_is_imported_beforehand_exists() -> None:
    assert all(find_spec(name) for name in PRELOADED)


async def test_it_has_a_log_a_session_and_an_ending_of_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path / "child.log") as child:
        assert os.getsid(child.process.pid) == child.process.pid
        child.process.send_signal(signal.SIGINT)
        assert await child.process.wait() == 0
        child.process.send_signal(signal.SIGINT)
    assert child.ending() == "code 0: Keyboard interrupt received, exiting."


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        (["node.cli", "join", "--threads", "none"], "code 2: "),
        (["no.such.module"], "code 1: "),
    ],
)
async def test_what_it_cannot_run_is_told(tmp_path: Path, command: list[str], ending: str) -> None:
    child = spawn_prestarted("a child", command, tmp_path / "child.log")
    await child.process.wait()
    assert child.ending().startswith(ending)
    child.process.kill()


async def test_a_killed_one_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path / "child.log") as child:
        child.process.kill()
        child.process.kill()
        assert await child.process.wait() == -signal.SIGKILL
    assert child.ending() == "killed by SIGKILL"


async def test_it_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    with program([sys.executable, "-c", STARTER, str(log), *SERVER]) as starter:
        child = psutil.Process(int(said(starter)[0]))
        await until_serving(child, log)
        starter.send_signal(signal.SIGKILL)
        await until_gone(child)


async def test_it_ends_when_its_starter_fails(tmp_path: Path) -> None:
    """Which waits for its children at its end."""
    failing = STARTER.replace("trio.run(trio.sleep_forever)", "raise SystemExit(3)")
    with program([sys.executable, "-c", failing, str(tmp_path / "log"), *SERVER]) as starter:
        child = psutil.Process(int(said(starter)[0]))
        await until_gone(child)
        assert starter.wait(20) == 3
