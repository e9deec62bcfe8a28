"""The throw-away server runs for root and for an ordinary user alike, and leaves nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.postgres import find_binaries, running_postgres

# The modules are loaded first: the interpreter may live where only root may enter.
AS_NOBODY = """
import os, pwd, sys
from pathlib import Path
from coordinator.store.database import open_database
from tests.support.postgres import running_postgres
open_database(sys.argv[2]).close()
nobody = pwd.getpwnam("nobody")
os.chdir("/")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
with running_postgres(Path(sys.argv[1])) as server:
    open_database(server.create_database()).close()
    print(server.url.partition("host=")[2])
"""


@pytest.fixture
def binaries() -> Path:
    found = find_binaries()
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no PostgreSQL")
        pytest.skip("no PostgreSQL: install it, or set PG_BIN")
    return found


def test_leaves_nothing_when_the_test_fails(binaries: Path) -> None:
    folders = []

    def fail() -> None:
        with running_postgres(binaries) as server:
            folders.append(Path(server.url.partition("host=")[2]))
            assert folders[0].is_dir()
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert not folders[0].exists()


def test_leaves_nothing_when_it_cannot_start(
    binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "initdb").symlink_to(binaries / "initdb")
    (folder / "postgres").symlink_to("/bin/false")
    tmp_path.chmod(0o755)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: _made(tmp_path / "data folder"))
    with pytest.raises((RuntimeError, OSError)), running_postgres(folder):
        pass
    assert not (tmp_path / "data folder").exists()


def _made(path: Path) -> str:
    path.mkdir()
    return str(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
def test_as_an_ordinary_user(binaries: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(binaries), str(tmp_path / "warm.db")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    folder = result.stdout.strip()
    assert folder.startswith("/tmp/pg")
    assert not Path(folder).exists()
