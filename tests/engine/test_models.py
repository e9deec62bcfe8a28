"""What an engine process loads, in which order, and what memory is left for its forwards."""

from typing import cast

import pytest

from coordinator.engine.models import load_models
from coordinator.engine.settings import EngineSettings
from specedge_p2p.lm import free_memory, loader
from specedge_p2p.lm.kv_memory import FreeMemory, KvMemory, plan_cache
from specedge_p2p.lm.runner import TransformersModel

GIB = 1 << 30
ROW_BYTES = {"target": 160 << 10, "draft": 112 << 10}
WEIGHTS = {"target": 28 * GIB, "draft": 3 * GIB}
"""Of Qwen3-14B and Qwen3-1.7B in bfloat16."""
MAX_CONTEXT = 40_000


class Device:
    """A device whose memory is counted; stands for `load_model` and what it asks of torch."""

    def __init__(self, num_bytes: int, is_gpu: bool) -> None:
        self.num_bytes = self.free_bytes = num_bytes
        self.is_gpu = is_gpu
        self.cache_rows: dict[str, int] = {}

    def load(
        self, name: str, *, cache_rows: int | KvMemory | None, **_: object
    ) -> TransformersModel:
        self.free_bytes -= WEIGHTS[name]
        if not isinstance(cache_rows, int):
            free = FreeMemory(self.free_bytes, self.is_gpu)
            row_bytes = ROW_BYTES[name]
            cache_rows = plan_cache(row_bytes, MAX_CONTEXT, free, cache_rows).num_rows
        self.cache_rows[name] = cache_rows
        self.free_bytes -= cache_rows * ROW_BYTES[name]
        assert self.free_bytes >= 0
        return cast("TransformersModel", name)


def load_on(
    monkeypatch: pytest.MonkeyPatch, device: Device, settings: EngineSettings
) -> tuple[str, str | None]:
    monkeypatch.setattr(loader, "load_model", device.load)
    monkeypatch.setattr(free_memory, "is_gpu", lambda _: device.is_gpu)
    models = load_models(settings)
    return cast("str", models.target), cast("str | None", models.draft)


PAIR = EngineSettings("target", device="auto", draft_model="draft")


@pytest.mark.parametrize("num_gib", [40, 80, 140])
def test_two_models_on_a_gpu_leave_memory_for_their_forwards(
    monkeypatch: pytest.MonkeyPatch, num_gib: int
) -> None:
    device = Device(num_gib * GIB, is_gpu=True)
    assert load_on(monkeypatch, device, PAIR) == ("target", "draft")
    beside_weights = device.num_bytes - sum(WEIGHTS.values())
    assert device.free_bytes >= 0.15 * beside_weights
    assert device.cache_rows["target"] * ROW_BYTES["target"] >= 0.5 * beside_weights
    assert device.cache_rows["draft"] >= 10_000


def test_a_draft_model_on_a_gpu_takes_no_more_rows_than_anybody_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(10_000 * GIB, is_gpu=True)
    load_on(monkeypatch, device, PAIR)
    assert device.cache_rows["draft"] == 64 * MAX_CONTEXT


def test_a_target_alone_and_a_pair_on_a_cpu_take_their_usual_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(80 * GIB, is_gpu=True)
    assert load_on(monkeypatch, device, EngineSettings("target")) == ("target", None)
    assert device.free_bytes == pytest.approx(0.2 * 52 * GIB, rel=0.01)
    device = Device(80 * GIB, is_gpu=False)
    assert load_on(monkeypatch, device, PAIR) == ("target", "draft")
    assert list(device.cache_rows) == ["target", "draft"]
    assert device.free_bytes == pytest.approx((0.75 * 52 - 3) * 0.75 * GIB, rel=0.01)


@pytest.mark.parametrize("is_gpu", [False, True])
def test_told_rows_and_memory_are_heeded(monkeypatch: pytest.MonkeyPatch, is_gpu: bool) -> None:
    device = Device(80 * GIB, is_gpu)
    settings = EngineSettings("target", draft_model="draft", cache_rows=5000)
    load_on(monkeypatch, device, settings)
    assert device.cache_rows == {"target": 5000, "draft": 5000}
    device = Device(80 * GIB, is_gpu)
    load_on(monkeypatch, device, EngineSettings("target", draft_model="draft", kv_memory="10GiB"))
    assert device.cache_rows["target"] == 10 * GIB // ROW_BYTES["target"]
