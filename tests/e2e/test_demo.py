"""`specedge-demo` as the README promises it."""

import json
import shlex
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from specedge_p2p.demo.processes import Child
from specedge_p2p.demo.run import DEFAULT_PORT
from tests.support.network import descendants, run_python, running_site, until
from tests.support.postgres import PostgresServer, postgres_or_skip
from tests.support.programs import is_there

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FIELDS = {
    *("token_ids", "text", "num_tokens", "num_rounds", "num_accepted", "num_accepted_by_node"),
    *("acceptance_length", "acceptance_length_drafted", "tokens_per_s", "baseline_tokens_per_s"),
    *("ledger", "step_floor_s", "dtype", "database"),
}
DEMO = "specedge_p2p.demo.cli"


async def demo(*arguments: str) -> dict[str, object]:
    """The object on the last line of stdout."""
    done = await run_python(DEMO, "--once", "--json", "--port", "0", *arguments, within_s=240)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == FIELDS
    return result


def ledger_of(result: dict[str, object]) -> dict[str, object]:
    ledger = result["ledger"]
    assert isinstance(ledger, dict)
    assert set(ledger) == {"num_transfers", "sum", "accepted_by_node"}
    assert ledger["sum"] == 0
    assert ledger["accepted_by_node"] == result["num_accepted_by_node"]
    return ledger


def number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


@pytest.mark.alone
async def test_two_nodes() -> None:
    arguments = ("--nodes", "2", "--max-tokens", "96", "--temperature", "0.7", "--seed", "7")
    result = await demo(*arguments, "--step-floor", "0.04")
    by_node = result["num_accepted_by_node"]
    assert isinstance(by_node, dict)
    assert len(by_node) == 2
    assert all(by_node.values())
    assert sum(by_node.values()) == result["num_accepted"]
    assert number(ledger_of(result)["num_transfers"]) > 0
    token_ids = result["token_ids"]
    assert isinstance(token_ids, list)
    assert 0 < len(token_ids) <= 96
    assert len(token_ids) < number(result["num_tokens"]) <= 4 * 96
    assert result["text"]
    # These figures depend on what else the machine does; a fraction of what is usual must be there.
    assert number(result["num_accepted"]) >= 0.1 * number(result["num_tokens"])
    assert number(result["acceptance_length_drafted"]) >= 1.5
    assert number(result["acceptance_length"]) >= 1.0
    assert number(result["tokens_per_s"]) > 0
    assert number(result["baseline_tokens_per_s"]) > 0
    assert (result["step_floor_s"], result["dtype"]) == (0.04, "float32")
    assert result["database"] == "sqlite"


async def test_without_nodes() -> None:
    result = await demo("--nodes", "0", "--max-tokens", "8", "--prompt", "def f(x):\n")
    assert result["num_tokens"] == 8
    assert (result["num_accepted"], result["num_accepted_by_node"]) == (0, {})
    assert result["acceptance_length"] is None
    assert result["acceptance_length_drafted"] is None
    assert ledger_of(result)["num_transfers"] == 0


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_or_skip() as server:
        yield server


@pytest.mark.alone
async def test_with_the_ledger_on_postgresql(postgres: PostgresServer) -> None:
    url = postgres.create_database()
    arguments = ("--nodes", "1", "--max-tokens", "48", "--step-floor", "0.02")
    result = await demo(*arguments, "--database-url", url)
    assert result["database"] == "postgresql"
    assert number(ledger_of(result)["num_transfers"]) > 0
    assert number(result["num_accepted"]) > 0
    for command in ("summary", "verify"):
        done = await run_python("coordinator.cli", "ledger", command, "--database-url", url)
        assert done.returncode == 0, done.stderr


@asynccontextmanager
async def staying_demo(folder: Path, *arguments: str) -> AsyncIterator[Child]:
    """A demo that has served its prompt and has said what to do next."""
    async with running_site(folder) as site:
        short = ("--nodes", "1", "--max-tokens", "8", "--prompt", "import os\n")
        child = await site.spawn("demo", [DEMO, *short, *arguments])

        async def is_up() -> bool:
            child.check()
            return bool(join_line(child))

        await until(is_up, "the demo stays up")
        yield child


def pasted(words: str, demo: Child) -> str:
    """The line with these words, whole, of those that a person is to paste."""
    lines = demo.log_path.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if words in line and line.endswith("\n"))


def join_line(demo: Child) -> str:
    return pasted("join --coordinator", demo)


def processes_of(demo: Child, module: str) -> list[psutil.Process]:
    return [child for child in descendants(demo) if module in child.cmdline()]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
async def test_stays_up_until_a_signal(tmp_path: Path, ending: signal.Signals) -> None:
    async with staying_demo(tmp_path, "--port", "0") as child:
        folder = home_in(join_line(child)).parent
        assert folder.is_dir()
        child.process.send_signal(ending)
        with trio.fail_after(20):
            assert await child.process.wait() == 0, child.log_path.read_text()
        assert "Traceback" not in child.log_path.read_text()
        assert " ended (" not in child.log_path.read_text()
        assert not folder.exists()


def home_in(line: str) -> Path:
    return Path(shlex.split(line)[-1])


@contextmanager
def default_port_taken() -> Iterator[None]:
    with socket.socket() as listener:
        with suppress(OSError):  # somebody else has it already
            listener.bind(("127.0.0.1", DEFAULT_PORT))
            listener.listen()
        yield


@pytest.mark.alone
async def test_the_last_lines_can_be_pasted_and_nodes_may_end(tmp_path: Path) -> None:
    with default_port_taken():
        async with staying_demo(tmp_path) as child:
            said = child.log_path.read_text()
            assert f"port {DEFAULT_PORT} is taken" in said
            assert "http://127.0.0.1:8000" not in said
            answer = await shell(pasted("curl ", child))
            assert json.loads(answer)["choices"][0]["text"]

            (node,) = processes_of(child, "node.cli")
            node.kill()
            line = "node 1 ended (killed by SIGKILL); the network goes on without it\n"

            async def is_told() -> bool:
                child.check()
                return line in child.log_path.read_text()

            await until(is_told, "the end of the node is told", 20)
            await a_pasted_node_joins(child)

            (coordinator,) = processes_of(child, "coordinator.cli")
            coordinator.kill()
            with trio.fail_after(30):
                assert await child.process.wait() == 2
            last = child.log_path.read_text().splitlines()[-1]
            assert last == "specedge-demo: the coordinator ended (killed by SIGKILL)"


async def shell(line: str) -> bytes:
    with trio.fail_after(60):
        done = await trio.run_process(line, shell=True, capture_stdout=True)
    return done.stdout


async def a_pasted_node_joins(demo: Child) -> None:
    gateway = shlex.split(pasted("curl ", demo))[1].removesuffix("/v1/completions")
    process = await trio.lowlevel.open_process("exec " + join_line(demo), shell=True)
    try:

        async def has_joined() -> bool:
            assert process.poll() is None
            async with httpx.AsyncClient(base_url=gateway) as client:
                return int((await client.get("/healthz")).json()["num_nodes"]) == 1

        await until(has_joined, "the pasted node has joined")
        process.send_signal(signal.SIGINT)
        with trio.fail_after(20):
            assert await process.wait() == 0
    finally:
        process.kill()


async def test_nothing_outlives_a_killed_demo(tmp_path: Path) -> None:
    async with staying_demo(tmp_path, "--port", "0") as child:
        folder, family = home_in(join_line(child)).parent, descendants(child)
        for module in ("coordinator.cli", "coordinator.engine.process", "node.cli"):
            assert processes_of(child, module)
        child.process.kill()
        await child.process.wait()

        async def is_clean() -> bool:
            return not any(is_there(process) for process in family) and not folder.exists()

        await until(is_clean, "coordinator, engine, node and folder are gone", 30)
