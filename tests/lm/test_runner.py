"""The runner's own promises; `test_port.py` holds what it shares with the toy model."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from specedge_p2p.lm import runner as subject
from specedge_p2p.lm.kv_cache import CacheShape, KvCache
from specedge_p2p.lm.pages import PAGE_ROWS, CachedSequence, PagePool
from specedge_p2p.lm.ports import ModelError, ModelInfo, OutOfCache, Rows, SamplingParams
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.lm.tree_attention import ATTENTION_NAME, attend
from tests.support.tiny_llama import VOCAB_SIZE, tiny_llama, tiny_runner

GREEDY = SamplingParams(temperature=0)
TOKENS = np.random.default_rng(0).integers(2, VOCAB_SIZE, 120).astype(np.int32)


def causal(sequence: int, start: int, stop: int, num_outputs: int) -> Rows:
    positions = np.arange(start, stop, dtype=np.int32)
    return Rows(sequence, TOKENS[start:stop], positions, None, num_outputs)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.6)]
)
def test_logits_equal_the_unmodified_model(dtype: torch.dtype, bound: float) -> None:
    runner = tiny_runner(dtype=dtype)
    for sequence in range(3):
        runner.add_sequence(sequence, GREEDY, bytes(16))
    runner._forward([causal(0, 0, 70, 0), causal(1, 0, 5, 0)])
    # A chunk that is attended on its own, a short one beside it, and a branch that ends a chain.
    chain = np.array([[0b1], [0b11], [0b101]], np.uint64)
    positions = np.array([5, 6, 6], np.int32)
    tree = Rows(1, TOKENS[[5, 6, 6]], positions, chain, 2)
    with torch.inference_mode():
        logits = runner._forward([causal(0, 70, 120, 50), tree, causal(2, 0, 7, 7)])
        model = tiny_llama(dtype)
        expected = model(torch.tensor(TOKENS[None].astype(np.int64))).logits[0]
    rows = torch.cat([expected[70:120], expected[6:7], expected[6:7], expected[0:7]])
    assert logits.dtype == dtype
    assert (logits - rows).abs().max() < bound
    assert (logits - rows.roll(1, 0)).abs().max() > 2 * bound  # the bound could be missed


def test_only_moved_rows_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    move = KvCache.move

    def count(self: KvCache, source: torch.Tensor, target: torch.Tensor) -> None:
        moved.append(len(source))
        move(self, source, target)

    monkeypatch.setattr(KvCache, "move", count)
    runner = tiny_runner()
    runner.add_sequence(0, GREEDY, bytes(16))
    eye = np.array([1 << i | 1 for i in range(5)], np.uint64)[:, None]
    positions = np.array([0, 1, 1, 1, 1], np.int32)
    rows = Rows(0, TOKENS[:5], positions, eye, 1)
    runner.choose([rows])
    runner.compact(0, [0, 1])
    assert moved == []
    runner.compact(0, [])
    runner.drop_sequence(0)
    runner.add_sequence(0, GREEDY, bytes(16))
    runner.choose([rows])
    runner.compact(0, [0, 3])
    assert moved == [1]


def test_moving_rows_may_overlap() -> None:
    shape = CacheShape(num_layers=2, num_kv_heads=1, key_dim=2, value_dim=3)
    cache = KvCache(shape, 8, torch.float32, torch.device("cpu"))
    numbers = torch.arange(8.0)[None, :, None]
    for layer in range(2):
        cache.write(layer, torch.arange(8), numbers.expand(1, 8, 2), numbers.expand(1, 8, 3))
    cache.move(torch.tensor([1, 2, 0]), torch.tensor([0, 1, 2]))
    for layer in range(2):
        keys, values = cache.gather(layer, torch.arange(4))
        assert keys[0, :, 0].tolist() == values[0, :, 2].tolist() == [1, 2, 0, 3]
    assert shape.row_bytes(torch.float32) == 2 * 5 * 4


def test_law7_bounded_pages_are_lent_and_come_back() -> None:
    pool = PagePool(4)
    state = CachedSequence(GREEDY, bytes(16))
    assert state.num_missing_pages(PAGE_ROWS + 1) == 2
    state.extend(pool.take(2))
    state.num_prefix = PAGE_ROWS + 1
    assert state.num_missing_pages(PAGE_ROWS - 1) == 0
    assert len(set(state.physical.tolist())) == 2 * PAGE_ROWS
    with pytest.raises(OutOfCache):
        pool.take(3)
    assert pool.num_free == 2
    state.num_prefix = PAGE_ROWS
    pool.give_back(state.shrink())
    assert (pool.num_free, len(state.physical)) == (3, PAGE_ROWS)


@pytest.mark.parametrize("does_expand", [False, True])
def test_no_memory_to_choose_tokens_is_no_full_cache(
    does_expand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are written and counted: with fewer of them the same step must not be tried again.

    The engine gives them back and goes on, one session at a time.
    """
    runner = tiny_runner()
    runner.add_sequence(0, GREEDY, bytes(16))
    tree = Rows(0, TOKENS[:3], np.arange(3, dtype=np.int32), np.array([[1], [3], [7]], "u8"), 3)

    def choose() -> object:
        return runner.expand([tree], 2) if does_expand else runner.choose([tree])

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(subject, "rank_children" if does_expand else "choose_tokens", fail)
        with pytest.raises(ModelError, match="no memory is left to choose tokens") as caught:
            choose()
    assert not isinstance(caught.value, OutOfCache)
    assert runner.num_tail_rows(0) == 3
    runner.compact(0, ())
    again = str(choose())
    runner.compact(0, ())
    assert str(choose()) == again


def test_the_device_is_waited_for_that_the_model_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread's current device may be another."""
    recorded: list[object] = []
    runner = tiny_runner()
    event = SimpleNamespace(record=recorded.append, query=lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream", device))
    monkeypatch.setattr(runner, "while_busy", lambda is_done: recorded.append(is_done()))
    gpu = torch.device("cuda:1")
    monkeypatch.setattr(runner, "_like", SimpleNamespace(is_cuda=True, device=gpu))
    runner._let_others_work()
    assert recorded == [("stream", gpu), True]


def test_attention_that_is_not_computed_here_is_refused() -> None:
    layer = torch.nn.Module()
    tensor = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ModelError, match="pass arguments"):
        attend(layer, tensor, tensor, tensor, None)
    with pytest.raises(ModelError, match="softcap"):
        attend(layer, tensor, tensor, tensor, None, layer_attention=_never(), softcap=30.0)
    with pytest.raises(ModelError, match="number"):
        attend(layer, tensor, tensor, tensor, None, layer_attention=_never())


def _never() -> Any:  # noqa: ANN401
    return object()


def test_a_model_without_chosen_logits_is_refused() -> None:
    info = ModelInfo("plain", 5, 5, (), "float32", bytes(16))
    with pytest.raises(ModelError, match="chosen logits"):
        TransformersModel(torch.nn.Linear(2, 2), info, 16)


def test_the_model_under_test_is_not_the_reference() -> None:
    under_test: Any = tiny_runner()._model
    assert tiny_llama().config._attn_implementation == "sdpa"
    assert under_test.config._attn_implementation == ATTENTION_NAME
