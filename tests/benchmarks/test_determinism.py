from typing import Any

import pytest

from specedge_p2p.lm.loader import load_model
from tests.benchmarks import determinism
from tests.benchmarks.determinism import Shape, measure, table


def test_float64_has_no_flips_and_no_dtype_any_beyond_its_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(determinism, "NUM_TEXTS", 2)
    monkeypatch.setattr(determinism, "SHAPES", (Shape(2, 3, 7), Shape(1, 5, 5, is_chunk=True)))
    figures = measure(6)
    assert all(check.holds for check in figures.checks)
    assert [row.num_tokens for row in figures.rows] == [12] * 12
    assert "bfloat16 | 1 x chunk of 5 | 0.7 | 12" in table(figures.rows)


def test_the_dtypes_are_tried_on_the_device_that_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The texts, which they are compared with, come from a CPU anyway."""
    devices: list[str] = []

    def load(*args: object, device: str, **options: Any) -> object:  # noqa: ANN401
        devices.append(device)
        return load_model("demo-draft", device="cpu", **options)

    monkeypatch.setattr(determinism, "load_model", load)
    monkeypatch.setattr(determinism, "SHAPES", ())
    monkeypatch.setattr(determinism, "_read", lambda *_: [])
    monkeypatch.setattr(determinism, "_texts", lambda _: [])
    measure(1, "cuda:1")
    assert devices == ["cuda:1"] * len(determinism.DTYPES)


def test_a_flip_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = determinism._texts(2)[:1]
    wrong = [[(token + 1) % 4096 for token in texts[0].chosen]]
    row = determinism._row("float32", Shape(1, 2, 2), texts, wrong, wrong)
    assert (row.flips_from_float64, row.flips_from_plain) == (10_000, 0)
    assert row.num_beyond_bound == 2
    assert [check.holds for check in determinism._checks([row])] == [False, False, False]
