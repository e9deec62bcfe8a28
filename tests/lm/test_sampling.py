"""The torch sampler against its numpy twins, and against the distribution it must follow."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specedge_p2p import noise
from specedge_p2p.lm.choosing import choose_token, filter_logits, rank_children
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.sampling import (
    Draws,
    choose_tokens,
    first_best_on_device,
    gumbel,
    hashes_on_cpu,
    likeliest,
    token_hashes,
)
from specedge_p2p.lm.sampling import filter_logits as torch_filter
from specedge_p2p.lm.sampling import rank_children as torch_rank

KEYS = st.binary(min_size=16, max_size=16)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 60]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01, 0.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)


def hashes(key: bytes, position: int, token_ids: list[int]) -> torch.Tensor:
    words = torch.tensor([noise.key_words(key)])
    return token_hashes(words, torch.tensor([position]), torch.tensor(token_ids))[0]


@given(
    key=KEYS,
    position=st.integers(0, 2**31 - 1),
    token_ids=st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=20),
)
def test_noise_equals_its_twin(key: bytes, position: int, token_ids: list[int]) -> None:
    tokens = np.array(token_ids)
    found = hashes(key, position, token_ids)
    assert found.tolist() == noise.token_hashes(key, position, tokens).tolist()
    double = gumbel(found, torch.float64).numpy()
    np.testing.assert_allclose(double, noise.gumbel(key, position, tokens), rtol=1e-12, atol=1e-12)
    single = gumbel(found, torch.float32).numpy()
    expected = noise.gumbel(key, position, tokens, np.float32)
    np.testing.assert_allclose(single, expected, rtol=1e-6, atol=1e-6)


def test_noise_is_finite_at_both_ends() -> None:
    ends = torch.tensor([0, 2**32 - 1])
    for dtype in (torch.float32, torch.float64):
        assert torch.isfinite(gumbel(ends, dtype)).all()


@given(
    keys=st.lists(KEYS, min_size=1, max_size=4),
    first_position=st.integers(0, 2**31 - 9),
    token_ids=st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=20),
)
def test_noise_on_the_processor_equals_that_of_other_devices(
    keys: list[bytes], first_position: int, token_ids: list[int]
) -> None:
    positions = [first_position + i for i in range(len(keys))]
    words = torch.tensor([noise.key_words(key) for key in keys])
    expected = token_hashes(words, torch.tensor(positions), torch.tensor(token_ids))
    found = hashes_on_cpu(keys, positions, np.array(token_ids))
    assert found.tolist() == expected.tolist()


@given(
    scores=st.lists(
        st.lists(st.sampled_from([0.0, 1.0, -math.inf, math.nan]), min_size=5, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_the_first_of_the_best_is_the_same_on_every_device(scores: list[list[float]]) -> None:
    """Of equals the lowest; where anything is no number, what lies outside the vocabulary."""
    greedy = Draws([SamplingParams(temperature=0)] * len(scores), [bytes(16)] * len(scores), [0])
    rows = torch.tensor(scores)
    found = choose_tokens(rows, greedy).tolist()
    assert found == first_best_on_device(rows).tolist()
    for row, token_id in zip(scores, found, strict=True):
        assert token_id == (5 if any(math.isnan(x) for x in row) else row.index(max(row)))


@given(
    num_rows=st.integers(1, 3),
    vocab_size=st.sampled_from([40, 41, 64, 96, 160]),
    count=st.integers(1, 10),
    seed=st.integers(0, 2**32 - 1),
    is_coarse=st.booleans(),
)
def test_the_largest_are_among_the_likeliest(
    num_rows: int, vocab_size: int, count: int, seed: int, is_coarse: bool
) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(num_rows, vocab_size)))
    if is_coarse:
        logits = logits.round()
    values, token_ids = likeliest(logits, count)
    assert torch.equal(values.topk(count, -1).values, logits.topk(count, -1).values)
    assert torch.equal(values, logits.gather(1, token_ids))
    assert all(len(set(row)) == len(row) for row in token_ids.tolist())


@given(data=st.data(), params=st.lists(PARAMS, min_size=1, max_size=6), is_coarse=st.booleans())
def test_choices_and_children_equal_the_plain_form(
    data: st.DataObject, params: list[SamplingParams], is_coarse: bool
) -> None:
    """Coarse logits hold many equal values: ties go to the lowest token id."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    logits = np.random.default_rng(seed).normal(size=(len(params), 53)) * 3
    if is_coarse:
        logits = np.round(logits)
    keys = [data.draw(KEYS) for _ in params]
    positions = [data.draw(st.integers(0, 4000)) for _ in params]
    draws = Draws(params, keys, positions)
    expected = [choose_token(*row) for row in zip(logits, params, keys, positions, strict=True)]
    assert choose_tokens(torch.from_numpy(logits), draws).tolist() == expected
    ids, log_probs = torch_rank(torch.from_numpy(logits), draws, 7)
    for i, sampling in enumerate(params):
        best = rank_children(logits[i], sampling.temperature, keys[i], positions[i], 7)
        np.testing.assert_allclose(log_probs[i].numpy(), best[1], atol=1e-6)
        if sampling.temperature > 0 or not is_coarse:
            assert ids[i].tolist() == best[0].tolist()


def test_children_of_a_large_vocabulary_are_drawn_from_its_likely_tokens() -> None:
    """A text model's logits fall so fast that what is left out is never among the best."""
    logits = np.random.default_rng(5).permutation(-0.5 * np.arange(1000.0))
    params = [SamplingParams(0.7), SamplingParams(0.0), SamplingParams(1.0)]
    keys = [noise.noise_key(noise.seed_bytes(i), [1, 2]) for i in range(3)]
    rows = torch.from_numpy(np.stack([logits] * 3))
    ids, log_probs = torch_rank(rows, Draws(params, keys, [9, 10, 11]), 7)
    for i, sampling in enumerate(params):
        best = rank_children(logits, sampling.temperature, keys[i], 9 + i, 7)
        assert ids[i].tolist() == best[0].tolist()
        np.testing.assert_allclose(log_probs[i].numpy(), best[1], atol=1e-5)


@given(params=PARAMS, seed=st.integers(0, 2**32 - 1))
def test_filters_equal_the_plain_form(params: SamplingParams, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=53) * 3
    expected = filter_logits(logits, params)
    found = torch_filter(torch.from_numpy(logits)[None], [params])[0]
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(expected).any()


def test_bfloat16_is_chosen_from_in_float32() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.5]], dtype=torch.bfloat16)
    draws = Draws([SamplingParams(temperature=0)], [bytes(16)], [0])
    assert choose_tokens(logits, draws).tolist() == [0]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(0.8),
        SamplingParams(0.8, top_k=4),
        SamplingParams(0.8, top_p=0.7),
        SamplingParams(0.8, min_p=0.1),
        SamplingParams(1.5, top_k=9, top_p=0.9, min_p=0.05),
    ],
)
def test_choices_follow_the_filtered_softmax(sampling: SamplingParams) -> None:
    """Chi-square over 20000 keys; the bound is passed by chance once in about 10**5 runs.

    The keys are fixed, so the test does not flicker.
    """
    logits = np.random.default_rng(3).normal(size=12) * 1.5
    num_draws = 20_000
    keys = [noise.noise_key(noise.seed_bytes(i), [3, 4]) for i in range(num_draws)]
    draws = Draws([sampling] * num_draws, keys, [7] * num_draws)
    chosen = choose_tokens(torch.from_numpy(np.tile(logits, (num_draws, 1))), draws).numpy()
    kept = filter_logits(logits / sampling.temperature, sampling)
    probs = np.exp(kept - kept.max())
    expected = probs / probs.sum() * num_draws
    counts = np.bincount(chosen, minlength=12)
    assert not counts[expected == 0].any()
    possible = expected > 0
    freedom = int(possible.sum()) - 1
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < freedom + 4.3 * math.sqrt(2 * freedom) + 8


class _Device(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches what runs on the meta device, which stands for a GPU: it has shapes and no values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest_bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest_bytes = max(self.largest_bytes, tensor.nbytes)
        return result


class _Copies(TorchFunctionMode):
    """Tensors made of numbers right on a device, and copies to it that may wait."""

    def __init__(self) -> None:
        super().__init__()
        self.num_waits = self.num_copies = 0

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            self.num_waits += kwargs.get("device") is not None
        if func is torch.Tensor.to and torch.device("meta") in args:
            self.num_copies += 1
            self.num_waits += not kwargs.get("non_blocking", False)
        return func(*args, **kwargs)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_law7_bounded_memory_for_choosing_on_a_gpu(temperature: float) -> None:
    """Whatever a step brings, no more than a slice of it is widened at once."""
    num_rows, vocab_size = 512, 151_936
    logits = torch.empty((num_rows, vocab_size), dtype=torch.bfloat16, device="meta")
    draws = Draws([SamplingParams(temperature)] * num_rows, [bytes(16)] * num_rows, [5] * num_rows)
    for choose in (choose_tokens, partial(torch_rank, branch_width=8)):
        with _Device() as device:
            choose(logits, draws)
        assert 0 < device.largest_bytes <= 1 << 27, choose


def test_the_host_waits_for_no_copy_to_a_gpu() -> None:
    params = [SamplingParams(0.8, 5, 0.9, 0.05), SamplingParams(0.0), SamplingParams(1.0)]
    logits = torch.empty((3, 4096), dtype=torch.bfloat16, device="meta")
    draws = Draws(params, [bytes(16)] * 3, [1, 2, 3])
    with _Copies() as copies:
        choose_tokens(logits, draws)
        torch_rank(logits, draws, 7)
    assert copies.num_waits == 0
    assert copies.num_copies > 9
