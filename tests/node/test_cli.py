"""The command line: it teaches, and bad input is one clear line and exit code 2."""

from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from node.cli import app
from node.receipts import ReceiptBook
from specedge_p2p.identity.keys import Identity
from tests.support.receipt_chain import receipt_chain

PEER = Identity.generate().peer_id
FORM = "/ip4/1.2.3.4/tcp/4011/p2p/12D3KooW..., as the coordinator prints it"


@pytest.fixture(autouse=True)
def _no_lower_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs in the tests' own process here."""
    monkeypatch.setattr("node.cli.yield_to_others", lambda: None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def assert_one_clear_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["join", "receipts", "identity"]),
        (["join", "--help"], ["--coordinator", "--draft-model", "--max-sessions", "Ctrl-C"]),
        (
            ["profile", "--help"],
            ["--coordinator", "--draft-model", "--link-delay-ms", "pays up to"],
        ),
        (["identity", "--help"], ["show"]),
        (["receipts", "--help"], ["list", "audit"]),
    ],
)
def test_help_teaches(arguments: list[str], words: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert all(word in result.stdout for word in words)
    hidden = ("--drafting", "--emulate", "--link-loss", "--report")  # for the network's own tests
    assert not any(option in result.stdout for option in hidden)


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("specedge-node ")


def test_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    first = run("identity", "show", "--home", str(tmp_path))
    again = run("identity", "show", "--home", str(tmp_path))
    assert first.exit_code == 0
    assert first.stdout.startswith("12D3Koo")
    assert first.stdout == again.stdout


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("localhost:4011", FORM),
        ("/ip4/127.0.0.1/tcp/4001", FORM),
        ("/ip4/127.0.0.1/tcp/4001/p2p/12D3KooW...", "a whole peer id: copy it"),
        (f"/ip4/127.0.0.1/tcp/99999/p2p/{PEER}", FORM),
    ],
    ids=["word", "no-peer", "peer", "port"],
)
def test_a_bad_address_is_one_clear_line(tmp_path: Path, address: str, word: str) -> None:
    for option in ("--coordinator", "--bootstrap"):
        result = run("join", "--home", str(tmp_path), option, address)
        assert_one_clear_line(result, word)
        assert result.stderr.count(address) == 1


def test_a_key_that_others_can_read_is_one_clear_line(tmp_path: Path) -> None:
    run("identity", "show", "--home", str(tmp_path))
    (tmp_path / "identity.pem").chmod(0o644)
    assert_one_clear_line(run("identity", "show", "--home", str(tmp_path)), "chmod 600")
    assert_one_clear_line(run("receipts", "list", "--home", str(tmp_path)), "chmod 600")
    assert_one_clear_line(run("join", "--home", str(tmp_path)), "chmod 600")


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--max-sessions", "0", "--max-sessions"),
        ("--threads", "0", "--threads"),
        ("--link-delay-ms", "-1", "--link-delay-ms"),
        ("--link-jitter-ms", "-1", "--link-jitter-ms"),
        ("--link-loss", "0.6", "--link-loss"),
        ("--link-loss", "0.1", "--link-delay-ms"),
        ("--link-churn-s", "-1", "--link-churn-s"),
        ("--stretch", "0", "--stretch"),
        ("--emulate", "no-such", "rtx4090-1.7b"),
    ],
)
def test_a_figure_out_of_range_is_one_clear_line(
    tmp_path: Path, option: str, value: str, word: str
) -> None:
    assert_one_clear_line(run("join", "--home", str(tmp_path), option, value), word)


@pytest.mark.parametrize("command", [("receipts", "list"), ("receipts", "audit"), ("join",)])
def test_a_book_that_is_none_is_one_clear_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    Identity.load_or_create(tmp_path / "identity.pem")
    (tmp_path / "receipts.sqlite3").write_bytes(b"garbage " * 1024)
    assert_one_clear_line(run(*command, "--home", str(tmp_path)), "move it away")


def test_absurd_receipts_are_listed(tmp_path: Path) -> None:
    identity, coordinator = Identity.load_or_create(tmp_path / "identity.pem"), Identity.generate()
    book = ReceiptBook(tmp_path / "receipts.sqlite3", identity.peer_id)
    most = 2**62 // 1_000_000
    for envelope in receipt_chain(coordinator, identity.peer_id, 3, num_accepted=most):
        book.add(coordinator.peer_id, envelope)
    book.close()
    listed = run("receipts", "list", "--home", str(tmp_path))
    assert listed.exit_code == 0
    assert f"3 receipts, {3 * most} tokens" in listed.stdout


@pytest.mark.parametrize("command", ["list", "audit"])
def test_looking_for_receipts_makes_nothing(tmp_path: Path, command: str) -> None:
    home = tmp_path / "home"
    for _ in range(2):
        result = run("receipts", command, "--home", str(home))
        assert (result.exit_code, result.stdout) == (0, f"no receipts yet in {home}\n")
        assert not home.exists() or [each.name for each in home.iterdir()] == ["identity.pem"]
        Identity.load_or_create(home / "identity.pem")  # a node that has a key and no receipts


@pytest.mark.parametrize("command", ["list", "audit"])
def test_an_empty_book_says_so(tmp_path: Path, command: str) -> None:
    identity = Identity.load_or_create(tmp_path / "identity.pem")
    ReceiptBook(tmp_path / "receipts.sqlite3", identity.peer_id).close()
    assert run("receipts", command, "--home", str(tmp_path)).stdout.startswith("no receipts yet")


def test_one_of_each_is_singular(tmp_path: Path) -> None:
    identity, coordinator = Identity.load_or_create(tmp_path / "identity.pem"), Identity.generate()
    book = ReceiptBook(tmp_path / "receipts.sqlite3", identity.peer_id)
    for envelope in receipt_chain(coordinator, identity.peer_id, 1, num_accepted=1):
        book.add(coordinator.peer_id, envelope)
    book.close()
    listed = run("receipts", "list", "--home", str(tmp_path)).stdout
    assert "#1  1 token  1 credit\n" in listed
    assert "1 receipt, 1 token, 1 credit\n" in listed
    assert run("receipts", "audit", "--home", str(tmp_path)).stdout == "1 receipt, all good\n"


def test_receipts_are_listed_and_audited(tmp_path: Path) -> None:
    identity, coordinator = Identity.load_or_create(tmp_path / "identity.pem"), Identity.generate()
    book = ReceiptBook(tmp_path / "receipts.sqlite3", identity.peer_id)
    for envelope in receipt_chain(coordinator, identity.peer_id, 3):
        book.add(coordinator.peer_id, envelope)
    listed = run("receipts", "list", "--home", str(tmp_path), "--limit", "2")
    assert listed.exit_code == 0
    assert "#3  5 tokens  5 credits" in listed.stdout
    assert "#1 " not in listed.stdout
    assert "3 receipts, 15 tokens, 15 credits" in listed.stdout
    audited = run("receipts", "audit", "--home", str(tmp_path))
    assert audited.exit_code == 0
    assert "3 receipts, all good" in audited.stdout
    book._db.execute("UPDATE receipts SET micro_credits = 7")
    book.close()
    tampered = run("receipts", "audit", "--home", str(tmp_path))
    assert tampered.exit_code == 1
    assert "the book says something else" in tampered.stderr


def test_one_receipt_is_no_receipts(tmp_path: Path) -> None:
    identity, coordinator = Identity.load_or_create(tmp_path / "identity.pem"), Identity.generate()
    with closing(ReceiptBook(tmp_path / "receipts.sqlite3", identity.peer_id)) as book:
        for envelope in receipt_chain(coordinator, identity.peer_id, 1, num_accepted=1):
            book.add(coordinator.peer_id, envelope)
    listed = run("receipts", "list", "--home", str(tmp_path)).stdout
    assert "#1  1 token  1 credit\n" in listed
    assert listed.endswith(": 1 receipt, 1 token, 1 credit\n")
    assert run("receipts", "audit", "--home", str(tmp_path)).stdout == "1 receipt, all good\n"
