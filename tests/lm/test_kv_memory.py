"""How much cache is planned, and what is said when there is too little."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.lm.free_memory import free_memory, is_gpu
from specedge_p2p.lm.kv_memory import (
    MAX_CONTEXTS,
    MIN_ROWS,
    FreeMemory,
    KvMemory,
    plan_cache,
    say_bytes,
)
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import ModelError

GIB = 1 << 30
HOST = FreeMemory(8 * GIB, is_gpu=False)


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("8GiB", KvMemory(8 * GIB)),
        ("8g", KvMemory(8 * GIB)),
        (" 1.5 GiB ", KvMemory(3 * GIB // 2)),
        ("500MB", KvMemory(500_000_000)),
        ("64KiB", KvMemory(65536)),
        ("4096", KvMemory(4096)),
        ("4096B", KvMemory(4096)),
        ("50%", KvMemory(share=0.5)),
        ("12.5 %", KvMemory(share=0.125)),
        ("100%", KvMemory(share=1.0)),
    ],
)
def test_sizes_and_shares(text: str, wish: KvMemory) -> None:
    assert KvMemory.parse(text) == wish


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-1GiB", "8 XB", "GiB", "1e9", "50% of"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(ModelError, match="8GiB"):
        KvMemory.parse(text)


@given(
    row_bytes=st.integers(1, 1 << 20),
    max_context=st.integers(1, 1 << 17),
    free_bytes=st.integers(0, 1 << 38),
    is_gpu=st.booleans(),
    wish=st.none()
    | st.builds(KvMemory, num_bytes=st.integers(1, 1 << 38))
    | st.builds(KvMemory, share=st.floats(0.01, 1), max_contexts=st.integers(0, 9)),
)
def test_law7_bounded_a_plan_never_takes_more_than_is_free_or_wished(
    row_bytes: int, max_context: int, free_bytes: int, is_gpu: bool, wish: KvMemory | None
) -> None:
    free = FreeMemory(free_bytes, is_gpu)
    try:
        plan = plan_cache(row_bytes, max_context, free, wish)
    except ModelError:
        return
    assert min(max_context, MIN_ROWS) <= plan.num_rows
    assert plan.max_context == min(max_context, plan.num_rows)
    assert plan.num_rows * row_bytes <= free_bytes
    if wish is None:
        assert plan.num_rows <= MAX_CONTEXTS * max_context
    elif wish.max_contexts:
        assert plan.num_rows <= wish.max_contexts * max_context
    elif wish.num_bytes:
        assert plan.num_rows == wish.num_bytes // row_bytes


def test_by_default_a_share_of_what_is_free_and_not_more_than_anybody_needs() -> None:
    assert plan_cache(1 << 20, 100_000, HOST, None).num_rows == 2048
    assert plan_cache(1 << 20, 100_000, FreeMemory(10 * GIB, is_gpu=True), None).num_rows == 8192
    assert plan_cache(1, 100, HOST, None).num_rows == 6400
    assert plan_cache(1, 100, HOST, KvMemory(7000)).num_rows == 7000
    assert plan_cache(1, 100, HOST, KvMemory(share=0.5, max_contexts=70)).num_rows == 7000


def test_a_context_that_does_not_fit_is_cut() -> None:
    assert plan_cache(1 << 20, 4096, HOST, KvMemory(GIB)).max_context == 1024


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (KvMemory(9 * GIB), r"9\.0 GiB does not fit: 8\.0 GiB"),
        (KvMemory(1 << 20), r"1\.0 MiB .* hold 1 tokens: at least 512\.0 MiB"),
        (KvMemory(share=0.01), "hold 81 tokens"),
    ],
)
def test_too_little_is_said_with_what_is_needed(wish: KvMemory, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        plan_cache(1 << 20, 4096, HOST, wish)


def test_sizes_are_said_for_people() -> None:
    assert [say_bytes(n) for n in (17, 2048, 3 << 20, 5 << 29)] == [
        "17 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "2.5 GiB",
    ]


def test_this_machine_has_memory() -> None:
    free = free_memory(torch.device("cpu"))
    assert not free.is_gpu
    assert 1 << 20 < free.num_bytes < 1 << 50


def test_what_torch_keeps_of_earlier_models_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GiB of a GPU hold a model, 4 GiB held one, and 6 GiB were never asked for."""
    gpu = torch.device("cuda:1")
    told: dict[str, object] = {
        "mem_get_info": (6 * GIB, 20 * GIB),
        "memory_reserved": 14 * GIB,
        "memory_allocated": 10 * GIB,
    }

    def tell(name: str) -> None:
        def answer(device: torch.device) -> object:
            assert device == gpu
            return told[name]

        monkeypatch.setattr(torch.cuda, name, answer)

    for name in told:
        tell(name)
    assert free_memory(gpu) == FreeMemory(10 * GIB, is_gpu=True)


@pytest.mark.parametrize("has_gpu", [False, True])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, has_gpu: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert [is_gpu(name) for name in ("cpu", "cuda", "cuda:1", "auto")] == [
        *(False, True, True),
        has_gpu,
    ]


def test_a_loaded_model_has_the_cache_that_was_wished() -> None:
    """A row of the demo draft model takes 2 layers x 1 head x (32 + 32) x 4 bytes."""
    model = load_model("demo-draft", dtype="float32", cache_rows=KvMemory(600 * 512))
    assert (model.cache.num_rows, model.info.max_context) == (608, 600)
    with pytest.raises(ModelError, match=r"hold 1 tokens: at least 256\.0 KiB"):
        load_model("demo-draft", dtype="float32", cache_rows=KvMemory(1000))
