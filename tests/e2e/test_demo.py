"""`specedge-demo` as the README promises it."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.network import run_python, running_site, until
from tests.support.postgres import PostgresServer, postgres_or_skip

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FIELDS = {
    *("token_ids", "text", "num_tokens", "num_rounds", "num_accepted", "num_accepted_by_node"),
    *("acceptance_length", "acceptance_length_drafted", "tokens_per_s", "baseline_tokens_per_s"),
    *("ledger", "step_floor_s", "dtype", "database"),
}
DEMO = "specedge_p2p.demo.cli"


async def demo(*arguments: str) -> dict[str, object]:
    """The object on the last line of stdout."""
    done = await run_python(DEMO, "--once", "--json", *arguments, within_s=240)
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


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
async def test_stays_up_until_a_signal(tmp_path: Path, ending: signal.Signals) -> None:
    async with running_site(tmp_path) as site:
        arguments = ("--nodes", "1", "--max-tokens", "8", "--prompt", "import os\n")
        child = await site.spawn("demo", ["-m", DEMO, *arguments])

        async def is_up() -> bool:
            child.check()
            return "Ctrl-C stops it" in child.log_path.read_text()

        await until(is_up, "the demo stays up")
        child.process.send_signal(ending)
        with trio.fail_after(20):
            assert await child.process.wait() == 0, child.log_path.read_text()
        assert "Traceback" not in child.log_path.read_text()
