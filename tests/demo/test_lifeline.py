"""What the demo starts and makes does not outlive it, even when it is killed."""

import signal
import sys
from pathlib import Path

import psutil

from specedge_p2p.demo.folder import passing_folder
from tests.support.network import until
from tests.support.programs import is_there, program, said, until_gone, until_serving

STARTER = """
import sys, trio
from pathlib import Path
from specedge_p2p.demo.processes import spawn
async def main():
    command = ["http.server", "--bind", "127.0.0.1", "0"]
    child = await spawn("a child", command, Path(sys.argv[1]))
    print(child.process.pid, flush=True)
    await trio.sleep_forever()
trio.run(main)
"""
HOLDER = """
import subprocess, sys, time
from specedge_p2p.demo.folder import passing_folder
with passing_folder("specedge-test-") as folder:
    child = subprocess.Popen(["sleep", "1000"], pass_fds=[folder.holding_fd])
    (folder.path / "log").write_text("said")
    print(child.pid, folder.path, flush=True)
    time.sleep(1000)
"""


def is_folder(path: Path) -> bool:
    return path.is_dir()


async def test_a_child_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    with program([sys.executable, "-c", STARTER, str(log)]) as starter:
        child = psutil.Process(int(said(starter)[0]))
        await until_serving(child, log)
        starter.send_signal(signal.SIGKILL)
        await until_gone(child)


async def test_a_folder_goes_with_the_last_who_holds_it() -> None:
    with program([sys.executable, "-c", HOLDER]) as holder:
        pid, name = said(holder)
        child, folder = psutil.Process(int(pid)), Path(name)
        assert is_folder(folder)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert is_there(child)
        assert is_folder(folder)
        child.kill()

        async def is_removed() -> bool:
            return not is_folder(folder)

        await until(is_removed, "the folder is removed", 20)


def test_a_folder_is_gone_after_its_context() -> None:
    with passing_folder("specedge-test-") as folder:
        (folder.path / "log").write_text("said")
    assert not is_folder(folder.path)
