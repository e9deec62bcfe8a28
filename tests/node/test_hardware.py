"""The benchmark and the small settings around it."""

import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest

from node.dishonest import GuessingModel
from node.governor import Governor
from node.hardware import Benchmark, LevelTime, benchmark, has_cuda_device, limit_threads
from node.level_times import LevelShape
from node.settings import default_home, default_threads
from node.status import Connection, Snapshot, status_line
from node.worker import WorkerStats
from specedge_p2p.lm.ports import Children, Rows
from specedge_p2p.lm.toy import ToyModel


def test_the_benchmark_times_levels_and_leaves_nothing_behind() -> None:
    model = ToyModel()
    ticks = count()
    result = benchmark(model, lambda: next(ticks) * 0.5, repeats=3, widths=(1, 16))
    assert result.levels == (LevelTime(1, 0.5), LevelTime(16, 0.5))
    assert model.num_free_rows == ToyModel().num_free_rows
    assert str(result) == "1 in 500.0 ms, 16 in 500.0 ms"


def test_a_level_time_is_that_of_the_next_measured_width() -> None:
    result = Benchmark((LevelTime(1, 0.1), LevelTime(16, 0.2)))
    assert [result.level_time_s(width) for width in (1, 2, 16, 99)] == [0.1, 0.2, 0.2, 0.2]


def test_threads_are_bounded_by_the_environment() -> None:
    environ: dict[str, str] = {"TOKENIZERS_PARALLELISM": "true"}
    limit_threads(3, environ)
    assert environ["OMP_NUM_THREADS"] == "3"
    assert environ["TOKENIZERS_PARALLELISM"] == "true"
    assert [default_threads(n) for n in (None, 1, 2, 4, 8, 16)] == [1, 1, 1, 1, 4, 8]


def test_the_home_follows_the_environment(tmp_path: Path) -> None:
    assert default_home({"SPECEDGE_HOME": str(tmp_path)}) == tmp_path / "node"
    assert default_home({}).parts[-2:] == ("specedge", "node")


def test_a_gpu_is_seen_by_its_device_file(tmp_path: Path) -> None:
    assert not has_cuda_device(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert not has_cuda_device(tmp_path)
    (tmp_path / "dev" / "nvidia1").touch()
    assert has_cuda_device(tmp_path)


def test_a_gpu_of_windows_is_seen_by_its_driver(tmp_path: Path) -> None:
    driver = tmp_path / "usr" / "lib" / "wsl" / "lib" / "libcuda.so.1"
    driver.parent.mkdir(parents=True)
    driver.touch()
    assert has_cuda_device(tmp_path)


def test_the_governor_pauses_and_goes_on() -> None:
    told: list[int] = []
    governor = Governor(5, told.append)
    governor.resume()  # not paused: nothing to say
    governor.toggle()
    governor.pause()
    assert governor.is_paused
    governor.toggle()
    assert told == [0, 5]


def test_the_random_guesser_obeys_the_port() -> None:
    honest = ToyModel()
    result = benchmark(GuessingModel(honest, seed=3), iter(range(10_000)).__next__)
    assert len(result.levels) == 4
    children = GuessingModel(honest, seed=3)._guess(50, 8)
    assert children.token_ids.shape == (50, 8)
    assert all(len(set(row)) == 8 for row in children.token_ids.tolist())
    assert 0 <= children.token_ids.min() <= children.token_ids.max() < honest.info.vocab_size


def test_the_status_line_says_what_counts() -> None:
    before = Snapshot(10.0, WorkerStats(num_accepted=10))
    stats = WorkerStats(
        num_sessions=2, num_accepted=40, num_committed=80, num_receipts=3, round_trip_s=0.0153
    )
    linked = Connection(is_linked=True)
    line = status_line(before, Snapshot(12.0, stats), linked)
    assert line == (
        "drafting · 2 sessions · 40 tokens accepted (50% of those served) · 15.0 tokens/s"
        " · round trip 15 ms · 3 receipts"
    )
    assert status_line(before, before, linked).startswith("waiting for work")
    one = Snapshot(12.0, WorkerStats(1, 1, 1, num_receipts=1, num_bad_receipts=1))
    line = status_line(one, one, linked, is_paused=True)
    assert line.startswith("paused · 1 session · 1 token accepted")
    assert line.endswith("1 receipt · 1 BAD RECEIPT")


def test_the_status_line_does_not_wait_for_work_without_a_coordinator() -> None:
    now = Snapshot(10.0, WorkerStats())
    lost = Connection(is_linked=False, next_try_s=12.5)
    assert status_line(now, now, lost).startswith("not connected, next try in 3 s · 0 sessions")
    paused = status_line(now, now, lost, is_paused=True)
    assert paused.startswith("paused · not connected, next try in 3 s")
    asking = status_line(now, now, Connection(is_linked=False))
    assert asking.startswith("not connected, asking for coordinators")


def test_the_benchmark_teaches_a_model_of_level_times() -> None:
    now = [0.0]

    class Slow(ToyModel):
        def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
            now[0] += 0.004 + 0.0001 * sum(len(rows.token_ids) for rows in batch)
            return super().expand(batch, branch_width)

    model = Slow()
    result = benchmark(model, lambda: now[0], repeats=2)
    assert {sample.shape.num_sessions for sample in result.more} == {1, 4, 8}
    times = result.level_times()
    for num_rows, num_sessions in ((16, 1), (64, 4), (10, 2)):
        shape = LevelShape(num_rows, num_sessions, 64 * num_sessions)
        assert times.predict(shape) == pytest.approx(0.004 + 0.0001 * num_rows, rel=0.03)


def test_a_small_model_is_measured_as_far_as_it_goes() -> None:
    model = ToyModel(max_context=40, cache_rows=200)
    result = benchmark(model, iter(range(10_000)).__next__, repeats=1)
    assert result.more == ()
    assert model.num_free_rows == 200


def test_a_node_lets_everything_else_go_first() -> None:
    script = (
        "import os; from node.hardware import yield_to_others; yield_to_others();"
        " print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert told.stdout == b"19\n"


AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="sessions share the processors on Linux alone")
def test_a_session_of_its_own_gives_way_as_a_whole() -> None:
    assert _autogroup_after_yielding(is_leader=True).endswith("nice 19")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="sessions share the processors on Linux alone")
def test_a_session_of_somebody_else_is_left_alone() -> None:
    assert _autogroup_after_yielding(is_leader=False) == AUTOGROUP.read_text().strip()


def test_a_session_is_lowered_though_another_one_was_a_moment_ago(tmp_path: Path) -> None:
    """The kernel then says "try again" to all but root, so its answer is played here."""
    script = (
        "import errno, sys; from pathlib import Path; from node.hardware import yield_to_others\n"
        "class Busy(type(Path())):\n"
        "    tries = 0\n"
        "    def write_text(self, *args):\n"
        "        Busy.tries += 1\n"
        "        if Busy.tries < 3:\n"
        "            raise OSError(errno.EAGAIN, 'try again')\n"
        "        return super().write_text(*args)\n"
        "yield_to_others(Busy(sys.argv[1]))"
    )
    path = tmp_path / "autogroup"
    command = [sys.executable, "-c", script, str(path)]
    subprocess.run(command, check=True, start_new_session=True)
    assert path.read_text() == "19"


def _autogroup_after_yielding(*, is_leader: bool) -> str:
    script = (
        "import sys; from pathlib import Path; from node.hardware import yield_to_others;"
        " yield_to_others(); print(Path(sys.argv[1]).read_text())"
    )
    command = [sys.executable, "-c", script, str(AUTOGROUP)]
    told = subprocess.run(
        command, capture_output=True, check=True, text=True, start_new_session=is_leader
    )
    return told.stdout.strip()
