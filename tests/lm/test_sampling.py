"""The torch sampler against its numpy twins, and against the distribution it must follow."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p import noise
from specedge_p2p.lm.choosing import choose_token, filter_logits, rank_children
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.sampling import Draws, choose_tokens, gumbel, token_hashes
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
