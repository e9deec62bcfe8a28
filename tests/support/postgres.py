"""A throw-away PostgreSQL server: no TCP port, no files left, as root and as an ordinary user."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


@dataclass
class PostgresServer:
    url: str
    """SQLAlchemy URL of a database that exists."""
    _numbers: Iterator[int] = field(default_factory=count)

    def create_database(self) -> str:
        """A new empty database; returns its URL."""
        name = f"t{os.getpid()}_{next(self._numbers)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        name = make_url(url).database
        with self._connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        plain = make_url(self.url).set(drivername="postgresql")
        return psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True)


def find_binaries() -> Path | None:
    """The folder that holds both `initdb` and `postgres`, the newest version first."""
    candidates = []
    if "PG_BIN" in os.environ:
        candidates.append(Path(os.environ["PG_BIN"]))
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    candidates += sorted(Path("/opt/homebrew/opt").glob("postgresql*/bin"), reverse=True)
    if (initdb := shutil.which("initdb")) is not None:
        candidates.append(Path(initdb).resolve().parent)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


@contextmanager
def postgres_or_skip() -> Iterator[PostgresServer]:
    """A server, however it can be had; without one the test is skipped, in CI it fails."""
    if (binaries := find_binaries()) is not None:
        with running_postgres(binaries) as server:
            yield server
    elif url := os.environ.get("TEST_DATABASE_URL"):
        yield PostgresServer(url)
    else:
        message = "no PostgreSQL: install it, or set PG_BIN or TEST_DATABASE_URL"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@contextmanager
def running_postgres(binaries: Path, *, is_durable: bool = False) -> Iterator[PostgresServer]:
    """Start a server of our own. It refuses to run as root, so root gives it away."""
    owner = _unprivileged_user() if os.geteuid() == 0 else None
    # A short path: a Unix socket's is at most 107 bytes long.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    try:
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        _run_initdb(binaries, folder, owner)
        with _running(binaries, folder, owner, is_durable=is_durable):
            yield PostgresServer(f"postgresql+psycopg://postgres@/postgres?host={folder}")
    finally:
        shutil.rmtree(folder)


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("neither a user postgres nor nobody exists")


def _start(
    command: list[str], folder: Path, owner: pwd.struct_passwd | None
) -> "subprocess.Popen[bytes]":
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
            user=None if owner is None else owner.pw_uid,
            group=None if owner is None else owner.pw_gid,
            extra_groups=None if owner is None else [],
            start_new_session=True,  # Ctrl-C is ours to pass on
        )


def _run_initdb(binaries: Path, folder: Path, owner: pwd.struct_passwd | None) -> None:
    command = [str(binaries / "initdb"), "-D", "data", "-U", "postgres", "-A", "trust"]
    command += ["-E", "UTF8", "--no-locale", "--no-sync"]
    if _start(command, folder, owner).wait(START_TIMEOUT_S) != 0:
        raise RuntimeError(f"initdb failed: {(folder / 'log').read_text()}")


@contextmanager
def _running(
    binaries: Path, folder: Path, owner: pwd.struct_passwd | None, *, is_durable: bool
) -> Iterator[None]:
    settings = ["listen_addresses=", f"unix_socket_directories={folder}", "max_connections=60"]
    if not is_durable:
        settings += ["fsync=off", "full_page_writes=off"]
    command = [str(binaries / "postgres"), "-D", "data"]
    for setting in settings:
        command += ["-c", setting]
    process = _start(command, folder, owner)
    try:
        _wait_until_ready(process, folder)
        yield
    finally:
        _stop(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(f"host={folder} user=postgres dbname=postgres").close()
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (folder / "log").read_text()
                raise RuntimeError(f"PostgreSQL does not start: {log}") from error
            time.sleep(0.05)  # the server has no other way to say that it is up
        else:
            return


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, at once
        if process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
