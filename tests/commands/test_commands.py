"""The commands as a person meets them: help, one clear line for bad input, a clean Ctrl-C."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from specedge_p2p.identity.keys import Identity
from tests.support.network import (
    descendants,
    free_port,
    run_python,
    running_site,
    until,
)

pytestmark = pytest.mark.e2e

SERVE, JOIN, DEMO = ("coordinator.cli", "serve"), ("node.cli", "join"), ("specedge_p2p.demo.cli",)
LEAVE_S = 60.0
"""Ctrl-C ends a command in about two seconds; a busy machine may take longer."""

HELP = [
    (SERVE, ["--model", "--host", "--port", "--listen", "--bootstrap", "--require-keys"]),
    (("coordinator.cli", "keys", "create"), ["--volunteers", "--home"]),
    (("coordinator.cli", "keys", "list"), ["--home", "--database-url"]),
    (("coordinator.cli", "keys", "revoke"), ["--home", "--database-url"]),
    (("coordinator.cli", "ledger", "summary"), ["--json", "--database-url"]),
    (("coordinator.cli", "ledger", "verify"), ["--database-url"]),
    (("coordinator.cli", "identity", "show"), ["--home"]),
    (JOIN, ["--coordinator", "--bootstrap", "--draft-model", "--threads", "--home"]),
    (("node.cli", "identity", "show"), ["--home"]),
    (("node.cli", "receipts", "list"), ["--limit", "--home"]),
    (("node.cli", "receipts", "audit"), ["--home"]),
    (
        DEMO,
        ["--nodes", "--max-tokens", "--port", "--once", "--json", "--step-floor", "--database-url"],
    ),
]


@pytest.mark.parametrize(("command", "options"), HELP, ids=lambda value: " ".join(value[:3]))
async def test_help(
    command: tuple[str, ...], options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    done = await run_python(*command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for option in options:
        assert option in done.stdout


# --- bad input -----------------------------------------------------------------------------------


async def refused(command: tuple[str, ...], *arguments: str) -> str:
    """What a command says, in one line, when it ends with code 2."""
    done = await run_python(*command, *arguments, within_s=120)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("specedge-")]
    assert len(said) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == said[0]
    return said[0]


def coordinator_arguments(folder: Path) -> list[str]:
    return [
        *("--home", str(folder / "home"), "--port", "0"),
        *("--listen", "/ip4/127.0.0.1/tcp/0"),
    ]


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


async def test_serve_refuses_an_unknown_model(tmp_path: Path) -> None:
    said = await refused(SERVE, *coordinator_arguments(tmp_path), "--model", "/no/such/model")
    assert "/no/such/model" in said


@pytest.mark.parametrize(
    "url", ["mysql://root@127.0.0.1/x", "nonsense://", "postgresql://nobody@127.0.0.1:1/none"]
)
async def test_serve_refuses_a_bad_database(tmp_path: Path, url: str) -> None:
    said = await refused(SERVE, *coordinator_arguments(tmp_path), "--database-url", url)
    assert "database" in said.lower() or url in said


async def test_serve_refuses_a_busy_gateway_port(tmp_path: Path) -> None:
    with taken_port() as port:
        arguments = [*coordinator_arguments(tmp_path), "--port", str(port)]
        assert str(port) in await refused(SERVE, *arguments)


async def test_serve_refuses_a_busy_listen_port(tmp_path: Path) -> None:
    with taken_port() as port:
        arguments = ["--home", str(tmp_path / "home"), "--port", "0"]
        said = await refused(SERVE, *arguments, "--listen", f"/ip4/127.0.0.1/tcp/{port}")
        assert str(port) in said


@pytest.mark.parametrize("option", ["--listen", "--bootstrap"])
async def test_serve_refuses_a_bad_multiaddress(tmp_path: Path, option: str) -> None:
    arguments = ["--home", str(tmp_path / "home"), "--port", "0"]
    if option != "--listen":
        arguments += ["--listen", "/ip4/127.0.0.1/tcp/0"]
    assert "127.0.0.1:4001" in await refused(SERVE, *arguments, option, "127.0.0.1:4001")


@pytest.mark.parametrize("command", [SERVE, JOIN], ids=lambda value: value[1])
async def test_refuses_a_key_that_others_can_read(tmp_path: Path, command: tuple[str, ...]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    Identity.load_or_create(home / "identity.pem")
    (home / "identity.pem").chmod(0o644)
    if command == SERVE:
        said = await refused(command, *coordinator_arguments(tmp_path))
    else:
        said = await refused(command, "--home", str(home))
    assert "identity.pem" in said


async def test_serve_refuses_strangers_without_keys(tmp_path: Path) -> None:
    done = await run_python(*SERVE, *coordinator_arguments(tmp_path), "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--require-keys" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:4001", "/ip4/127.0.0.1/tcp/4001"])
@pytest.mark.parametrize("option", ["--coordinator", "--bootstrap"])
async def test_join_refuses_a_bad_address(tmp_path: Path, option: str, address: str) -> None:
    assert address in await refused(JOIN, "--home", str(tmp_path), option, address)


async def test_ledger_refuses_where_there_is_none(tmp_path: Path) -> None:
    said = await refused(("coordinator.cli", "ledger", "summary"), "--home", str(tmp_path))
    assert str(tmp_path) in said


async def test_demo_refuses_json_of_a_run_that_does_not_end() -> None:
    assert "--once" in await refused(DEMO, "--json")


async def test_demo_refuses_a_busy_port_that_was_named() -> None:
    with taken_port() as port:
        said = await refused(DEMO, "--nodes", "0", "--port", str(port))
        assert f"Cannot serve on 127.0.0.1:{port}" in said


async def test_two_coordinators_cannot_share_a_port_or_two_nodes_a_home(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        nowhere = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{Identity.generate().peer_id}"
        node = await site.node("node", None, "--coordinator", nowhere)

        async def has_started() -> bool:
            return "this node is" in node.log()

        await until(has_started, "the node has started")
        said = await refused(JOIN, "--home", str(node.home))
        assert str(node.home) in said


# --- Ctrl-C --------------------------------------------------------------------------------------


async def test_ctrl_c_ends_serve_and_join_cleanly(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        coordinator = await site.coordinator()
        node = await site.node("node", coordinator, is_prestarted=False)
        await coordinator.until_nodes(1)
        for process in (node, coordinator):
            family = descendants(process.child)
            process.signal(signal.SIGINT)
            started_s = trio.current_time()
            with trio.fail_after(LEAVE_S):
                assert await process.child.process.wait() == 0
            print(f"{process.child.name} left in {trio.current_time() - started_s:.1f} s")
            assert "Traceback" not in process.log()
            assert not [each for each in family if each.is_running()]


async def test_ctrl_c_while_starting_ends_serve_cleanly(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        arguments = ["coordinator.cli", "serve", *coordinator_arguments(tmp_path)]
        child = await site.spawn("starting", arguments)

        async def is_loading() -> bool:
            return "loading demo-target" in child.log_path.read_text()

        await until(is_loading, "the engine is loading")
        family = descendants(child)
        assert family
        child.process.send_signal(signal.SIGINT)
        with trio.fail_after(LEAVE_S):
            assert await child.process.wait() == 0, child.log_path.read_text()
        assert "Traceback" not in child.log_path.read_text()
        assert not [each for each in family if each.is_running()]
