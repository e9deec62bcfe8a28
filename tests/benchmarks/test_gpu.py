"""The GPU's benchmark in miniature; its figures say nothing, so none is judged."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from specedge_p2p.lm.runner import TransformersModel
from tests.benchmarks import engine_sections, gpu, gpu_round
from tests.benchmarks.engine import EngineEffort
from tests.benchmarks.gpu import TINY, GpuFigures, bench_on, check, lines, measure
from tests.benchmarks.gpu_round import measure_round
from tests.benchmarks.gpu_subject import Bench, ForwardRow, Limits, Subject
from tests.benchmarks.gpu_ties import Ties, measure_ties

BENCH = Bench(torch.device("cpu"), torch.float32, 1, context=32, long_context=64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_every_check_is_measured() -> None:
    figures = measure(BENCH, TINY, TINY, TINY)
    assert len(figures.rows) == 5
    assert all(
        row.time_ms > 0 and row.weights_ms > 0 and row.compute_ms > 0 for row in figures.rows
    )
    assert [one.name for one in figures.checks] == [
        "gpu/verify-1x33",
        "gpu/verify-8x33",
        "gpu/verify-32x8",
        "gpu/level-1x32",
        "gpu/verify-8x33-16k",
        "gpu/round-8",
        "gpu/gap-ms",
        "gpu/impossible-tokens",
    ]
    assert all(one.value > 0 for one in figures.checks[:-1])
    assert figures.checks[-1].holds
    assert figures.ties.num_tokens == 8 * 33 + 8 * 9 + 33 + 3
    text = "\n".join(lines(figures))
    assert "target tiny: 0 graphs, 0 replays, 0 eager; 0 rows padded beside 0" in text
    assert "0 are beyond rounding" in text


def test_all_that_the_host_does_before_the_device_is_left_alone_is_a_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a device computes after all was launched makes a step longer, and no gap.

    The clock goes on by 1 ms whenever somebody looks at it, and by 30 while the device computes.
    """
    now_s = 0.0

    def look() -> float:
        nonlocal now_s
        now_s += 1e-3
        return now_s

    def finish() -> bool:
        nonlocal now_s
        now_s += 30e-3
        return True

    monkeypatch.setattr(gpu_round, "time", SimpleNamespace(perf_counter=look, monotonic=look))
    monkeypatch.setattr(
        TransformersModel, "_let_others_work", lambda model: model.while_busy(finish)
    )
    done = measure_round(Subject(TINY, BENCH, 64 * BENCH.context), 2, 4)
    # begun, launched; computed, over
    assert done.time_ms - done.gap_ms == pytest.approx(31)
    assert 2 <= done.gap_ms <= 20


def test_a_level_is_timed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    expand = TransformersModel.expand

    def counted(model: TransformersModel, batch: object, width: int) -> object:
        widths.append(width)
        return expand(model, batch, width)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersModel, "expand", counted)
    Subject(TINY, BENCH, 256).measure(1, 32, 32, Limits(1e9, 1e9), 8)
    assert widths == [8, 8, 8]


def test_a_wrong_token_is_beyond_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = TransformersModel.choose

    def wrong(model: TransformersModel, batch: object) -> object:
        first, *others = choose(model, batch)  # type: ignore[arg-type]
        return [(first + 1) % TINY.vocab_size, *others]

    monkeypatch.setattr(TransformersModel, "choose", wrong)
    ties = measure_ties(replace(BENCH, context=16), TINY)
    assert (ties.num_different, ties.num_impossible) == (0, 2 * (33 + 9 + 33 + 1))


@pytest.mark.parametrize("has_room", [True, False])
def test_the_engine_s_benchmark_says_what_a_gpu_does(
    has_room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = dict(engine_sections.SECTIONS)["gpu"]
    rows = [ForwardRow("a forward", 6.0, 4.0, 1.0, 2.0, 0)]
    figures = GpuFigures(rows, [check("gpu/verify-1x33", 1.5, 1.75)], {}, Ties())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert section(EngineEffort()).rows == ()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "has_room", lambda device: has_room)
    monkeypatch.setattr(gpu, "measure", lambda *_: figures)
    found = section(EngineEffort())
    assert found.checks == (tuple(figures.checks) if has_room else ())
    assert [(row.time_ms, row.ratio) for row in found.rows] == ([(6.0, 1.5)] if has_room else [])


def test_a_gpu_is_measured_in_bfloat16() -> None:
    bench = bench_on(torch.device("cuda:1"), 3)
    assert (bench.dtype_name, bench.context) == ("bfloat16", 1024)
