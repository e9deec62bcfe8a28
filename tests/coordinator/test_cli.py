"""The commands: one clear line and exit code 2 for what a person can mend."""

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coordinator import main
from coordinator.cli import app
from specedge_p2p.identity.keys import Identity
from tests.support.toy_coordinator import toy_engine

PROGRAM = "specedge-coordinator: "


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def assert_clear(result: Result, *parts: str) -> None:
    """Exit code 2, one line for a person, no traceback, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith(PROGRAM)]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--host", "0.0.0.0"], ["--require-keys", "--public", "0.0.0.0"]),
        (["--allow", "nobody"], ["--allow nobody", "specedge-node identity show"]),
        (["--holdout", "0.001"], ["--holdout 0.001", "0.005"]),
        (["--model", "/no/such/model"], ["/no/such/model"]),
        (["--listen", "nonsense"], ["nonsense", "/ip4/0.0.0.0/tcp/4011"]),
        (["--engine-draft", "/no/such/draft"], ["/no/such/draft"]),
        (["--engine-tree", "3by4"], ["3by4", "off, auto", "3x4"]),
        (["--engine-tree", "3x0"], ["3x0"]),
        (["--engine-tree", "33x1"], ["33x1", "32 levels"]),
        (["--emulate", "no-such"], ["no-such", "a100-32b"]),
        (["--kv-memory", "lots"], ["lots", "8GiB", "50%"]),
        (["--kv-memory", "0%"], ["0%", "8GiB"]),
        (["--emulate", "slow-15ms"], ["slow-15ms", "verifies nothing"]),
        (["--lockstep", "6"], ["'6'", "6x32"]),
        (["--bootstrap", "/ip4/1.2.3.4/tcp/1"], ["/ip4/1.2.3.4/tcp/1", "/p2p/12D3KooW..."]),
        (["--database-url", "postgresql://nobody@127.0.0.1:1/none"], ["127.0.0.1"]),
    ],
)
def test_serve_says_what_is_wrong(tmp_path: Path, words: list[str], parts: list[str]) -> None:
    listen = [] if "--listen" in words else ["--listen", "/ip4/127.0.0.1/tcp/0"]
    result = call("serve", "--home", tmp_path, "--port", "0", *listen, *words)
    assert_clear(result, *parts)


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_what_only_this_machine_reaches_needs_no_keys(tmp_path: Path, host: str) -> None:
    result = call("serve", "--home", tmp_path, "--host", host, "--model", "/no/such/model")
    assert_clear(result, "/no/such/model")


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--port", "70000"],
        ["serve", "--max-sessions", "0"],
        ["serve", "--holdout", "0.02"],
        ["serve", "--stretch", "0"],
        ["serve", "--dtype", "float8"],
        ["serve", "--no-such-option"],
        ["keys", "create"],
        ["keys", "create", "me", "--volunteers", "some"],
        ["no-such-command"],
    ],
)
def test_words_that_are_not_understood(words: list[str]) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert "Error" in result.stderr


def test_a_busy_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_running_engine", toy_engine)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        listen = ("--listen", "/ip4/127.0.0.1/tcp/0")
        result = call("serve", "--home", tmp_path, "--port", port, *listen)
        assert_clear(result, port, "another --port", "0 takes a free one")


def test_a_busy_port_for_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_running_engine", toy_engine)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        result = call("serve", "--home", tmp_path, "--port", "0", "--listen", listen)
        assert_clear(result, listen, "another --listen", "/ip4/127.0.0.1/tcp/0")


@pytest.mark.parametrize(("model", "text"), [("missing", "no model named missing"), ("dies", "")])
def test_serve_ends_when_the_engine_cannot_be_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, text: str
) -> None:
    monkeypatch.setattr(main, "_running_engine", lambda settings: toy_engine(settings, model))
    result = call("serve", "--home", tmp_path, "--port", "0", "--listen", "/ip4/127.0.0.1/tcp/0")
    assert_clear(result, text)


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("specedge-coordinator ")


def test_help_tells_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for words in ([], ["serve"], ["keys"], ["keys", "create"], ["ledger", "verify"], ["identity"]):
        result = call(*words, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    assert "completion" not in call("--help").stdout
    text = call("serve", "--help").stdout
    for option in ("--model", "--host", "--port", "--listen", "--bootstrap", "--require-keys"):
        assert option in text
    assert "only" in text


def test_keys_from_creation_to_revocation(tmp_path: Path) -> None:
    home = ("--home", tmp_path)
    created = call("keys", "create", "a friend", "--volunteers", "none", *home)
    assert created.exit_code == 0, created.output
    key = created.stdout.strip()
    key_id = created.stderr.split()[1]
    listed = call("keys", "list", *home).stdout
    assert key_id in listed
    assert "a friend" in listed
    assert key not in listed
    assert call("keys", "revoke", key_id, *home).exit_code == 0
    assert_clear(call("keys", "revoke", key_id, *home), key_id, "keys list")


@pytest.mark.parametrize("words", [["summary"], ["verify"]])
def test_looking_at_a_ledger_does_not_make_it(tmp_path: Path, words: list[str]) -> None:
    assert_clear(call("ledger", *words, "--home", tmp_path), "no ledger at", "--home")
    assert not list(tmp_path.iterdir())


def test_an_empty_ledger_is_sound(tmp_path: Path) -> None:
    assert call("keys", "create", "someone", "--home", tmp_path).exit_code == 0
    assert call("ledger", "verify", "--home", tmp_path).stdout == "the ledger is sound\n"
    content = json.loads(call("ledger", "summary", "--json", "--home", tmp_path).stdout)
    assert (content["num_transfers"], content["sum"]) == (0, 0)
    assert "0 transfers" in call("ledger", "summary", "--home", tmp_path).stdout


def test_the_identity_is_made_once(tmp_path: Path) -> None:
    first = call("identity", "show", "--home", tmp_path / "new")
    assert first.exit_code == 0
    assert call("identity", "show", "--home", tmp_path / "new").stdout == first.stdout
    assert Identity.load(tmp_path / "new" / "identity.pem").peer_id == first.stdout.strip()


def test_a_file_that_is_no_identity(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    path.write_text("not a key")
    path.chmod(0o600)
    assert_clear(call("identity", "show", "--home", tmp_path), "identity.pem")


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is not a database" * 100)
    assert_clear(call("ledger", "verify", "--home", tmp_path), "ledger.sqlite")


def test_a_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_clear(call("identity", "show", "--home", tmp_path / "file" / "home"), "file")
