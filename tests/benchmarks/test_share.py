import os

import pytest

from tests.benchmarks.binding import Size
from tests.benchmarks.gap import measure_gap
from tests.benchmarks.share import PARTS, measure_tasks, process_cpu_s
from tests.benchmarks.share_figures import (
    NUM_SESSIONS,
    ShareRow,
    checks_of,
    limit_sessions,
    lines,
    middle_rows,
    unstretched,
)


def process(num_sessions: int, cpu_ms: float, step_ms: float) -> ShareRow:
    return ShareRow("process", num_sessions, cpu_ms, step_ms, 100)


def test_every_part_of_the_coordinator_is_metered() -> None:
    rows = measure_tasks(2, num_steps=10)
    assert [row.name for row in rows] == list(PARTS)
    assert all(row.cpu_ms > 0 for row in rows)
    assert 14 < rows[0].step_ms < 25  # of the emulated device


def test_the_gap_is_that_of_full_trees() -> None:
    gap = measure_gap(Size(2, 64), num_steps=6)
    assert 0 < gap.median_ms <= gap.p95_ms
    assert gap.num_live > 32
    assert gap.rows_per_session > 1


def test_the_limit_lies_where_the_process_takes_as_long_as_a_step() -> None:
    assert limit_sessions([process(10, 4, 14), process(20, 8, 16)]) == pytest.approx(60)
    assert limit_sessions([process(10, 4, 14), process(20, 4, 16)]) == float("inf")


def test_what_goes_with_seconds_is_counted_once() -> None:
    # 5 ms a step and 2 % of all real time, with steps of 20 ms stretched 12 and 24 times.
    short = ShareRow("short", 24, 5 + 0.02 * 250, 20.0, 100, wall_ms=250.0)
    long = ShareRow("long", 24, 5 + 0.02 * 490, 20.0, 60, wall_ms=490.0)
    row = unstretched(short, long)
    assert row.name == "process"
    assert row.cpu_ms == pytest.approx(5 + 0.02 * 20)
    assert row.num_steps == 160
    with pytest.raises(ValueError, match="hardly longer"):
        unstretched(long, short)


def test_noise_never_makes_real_time_a_gain() -> None:
    short = ShareRow("short", 24, 8.0, 20.0, 100, wall_ms=250.0)
    long = ShareRow("long", 24, 7.5, 20.0, 60, wall_ms=490.0)
    assert unstretched(short, long).cpu_ms == 8.0


def test_runs_that_are_too_noisy_say_nothing() -> None:
    short = ShareRow("short", 24, 8.0, 16.2, 100, wall_ms=194.0)
    long = ShareRow("long", 24, 18.0, 16.2, 60, wall_ms=389.0)
    with pytest.raises(ValueError, match="too noisy"):
        unstretched(short, long)


def test_the_middle_run_counts() -> None:
    rows = [process(24, cpu_ms, 20) for cpu_ms in (9, 30, 8)]
    assert middle_rows([*rows, process(8, 1, 20)]) == [process(8, 1, 20), process(24, 9, 20)]


def test_bounds_are_judged_at_one_load() -> None:
    gap = measure_gap(Size(1, 8), num_steps=2)
    rows = [
        *(ShareRow(name, NUM_SESSIONS, 0.5, 20.0, 10) for name in PARTS),
        process(8, 3, 15),
        *(process(NUM_SESSIONS, cpu_ms, 18) for cpu_ms in (9, 14, 8)),
    ]
    checks = {check.name: check for check in checks_of(rows, gap)}
    assert checks["share/rounds"].value == pytest.approx(0.075)
    assert checks["share/rounds"].holds
    assert checks["share/process"].value == pytest.approx(0.5)
    assert "0.44 to 0.78 in 3 pairs" in checks["share/process"].note
    assert "about" in checks["share/process"].note
    assert len(lines(rows, gap)) == len(rows) + 1


def test_processor_time_of_a_process_is_read() -> None:
    before_s = process_cpu_s(os.getpid())
    while process_cpu_s(os.getpid()) == before_s:
        sum(range(100_000))
    assert process_cpu_s(os.getpid()) > before_s
