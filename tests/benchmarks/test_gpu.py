"""The GPU's benchmark in miniature; its figures say nothing, so none is judged."""

import torch

from tests.benchmarks.gpu import TINY, Bench, measure


def test_every_check_is_measured() -> None:
    torch.set_num_threads(1)
    bench = Bench(torch.device("cpu"), torch.float32, 1, context=32, long_context=64)
    rows, checks = measure(bench, TINY, TINY)
    assert len(rows) == 5
    assert all(row.time_ms > 0 and row.weights_ms > 0 and row.compute_ms > 0 for row in rows)
    assert [one.name for one in checks] == [
        "gpu/verify-1x33",
        "gpu/verify-8x33",
        "gpu/verify-32x8",
        "gpu/level-1x32",
        "gpu/verify-8x33-16k",
        "gpu/round-8",
        "gpu/gap-ms",
    ]
    assert all(one.value > 0 for one in checks)
