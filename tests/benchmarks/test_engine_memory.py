from tests.benchmarks.engine_memory import MemoryEffort, measure_memory


def test_a_small_run_holds_what_is_promised() -> None:
    figures = measure_memory(MemoryEffort(num_mixed=16, num_common=4), "demo-draft")
    assert [(check.name, check.holds) for check in figures.checks] == [
        ("memory/quarter-cache", True),
        ("memory/shared-prefix", True),
    ]
    whole, quarter, apart, shared = figures.rows
    assert (whole.num_preempted, apart.num_reused_rows) == (0, 0)
    assert quarter.cache_rows < whole.cache_rows / 7
    assert shared.num_reused_rows == 3 * 512
