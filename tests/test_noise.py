import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.noise import (
    gumbel,
    key_words,
    mix32,
    noise_key,
    position_words,
    seed_bytes,
    token_hashes,
)

KEY = bytes(range(16))
TOKEN_IDS = np.array([0, 1, 2, 4095, 151_935, (1 << 24) - 1])
MASK = 0xFFFFFFFF
Counts = npt.NDArray[np.int64]

# --- vectors: they may never change, or sessions would ------------------------------------------


def test_key_vectors() -> None:
    assert noise_key(b"", []).hex() == "404b54567ac1979859a67f4b41ba2e8a"
    assert noise_key(b"seed", [1, 2, 3]).hex() == "f62807a04e35525df8312e76a4b3ac8a"


def test_seed_vectors() -> None:
    seeds = [0, 7, -1, 127, 128, 2**64]
    expected = ["00", "07", "ff", "7f", "8000", "000000000000000001"]
    assert [seed_bytes(seed).hex() for seed in seeds] == expected


def test_mixer_vectors() -> None:
    mixed = [mix32(x) for x in (0, 1, MASK, 123456789)]
    assert mixed == [0, 1753845952, 1734902346, 2834422664]


@pytest.mark.parametrize(
    ("position", "words", "hashes"),
    [
        (
            0,
            (1158203943, 1703117413),
            [405078137, 4278914400, 3058416820, 455783308, 4036811497, 78493680],
        ),
        (
            1,
            (3529008971, 2584153872),
            [3391209420, 1714009626, 2068234895, 634458644, 3734660817, 53852206],
        ),
        (
            4095,
            (1538041557, 394887255),
            [2281153160, 2184871844, 3556749610, 1071700381, 384715475, 2708980162],
        ),
        (
            2**31,
            (2357413674, 3416308923),
            [3272841428, 4189443747, 1157451726, 2464442601, 245209609, 4026233164],
        ),
    ],
)
def test_hash_vectors(position: int, words: tuple[int, int], hashes: list[int]) -> None:
    assert position_words(KEY, position) == words
    assert token_hashes(KEY, position, TOKEN_IDS).tolist() == hashes


def test_gumbel_vectors() -> None:
    expected = [
        "0x1.6f749a205b837p-1",
        "-0x1.ee3fb9f598e6ap-1",
        "0x1.28120df487c16p-8",
        "0x1.0390a5005463ep+1",
        "-0x1.52165bfd9eb29p-2",
        "0x1.a899233898bf9p+1",
    ]
    exact = [float.fromhex(text) for text in expected]
    # The logarithms of two machines may differ in the last place.
    np.testing.assert_allclose(gumbel(KEY, 17, TOKEN_IDS), exact, rtol=1e-14)
    single = gumbel(KEY, 17, TOKEN_IDS, np.float32)
    assert single.dtype == np.float32
    # A value near 0 is the logarithm of a number near 1: its error is absolute.
    np.testing.assert_allclose(single, exact, rtol=2e-6, atol=1e-6)


# --- the definition -----------------------------------------------------------------------------


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**32), st.integers(0, MASK))
def test_hashes_follow_the_definition_in_plain_integers(
    key: bytes, position: int, token_id: int
) -> None:
    first, second = position_words(key, position)
    slow = mix32(mix32(token_id ^ first) ^ second)
    assert token_hashes(key, position, np.array([[token_id]])).tolist() == [[slow]]


def test_a_key_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes, got 15"):
        key_words(bytes(15))
    assert key_words(KEY) == (0x03020100, 0x07060504, 0x0B0A0908, 0x0F0E0D0C)


@given(st.integers(), st.integers())
def test_different_seeds_have_different_bytes(one: int, other: int) -> None:
    assert (seed_bytes(one) == seed_bytes(other)) == (one == other)


def test_keys_differ_by_seed_and_prompt() -> None:
    prompts: list[list[int]] = [[], [1], [1, 2], [12]]
    keys = {noise_key(seed, prompt) for seed in (b"", b"a", b"ab") for prompt in prompts}
    assert len(keys) == 12


# --- extremes -----------------------------------------------------------------------------------


def unmix32(x: int) -> int:
    """The inverse of mix32."""
    x ^= x >> 16
    x = x * pow(0x846CA68B, -1, 1 << 32) & MASK
    x ^= x >> 15 ^ x >> 30
    x = x * pow(0x7FEB352D, -1, 1 << 32) & MASK
    return x ^ x >> 16


def token_with_hash(position: int, wanted: int) -> int:
    first, second = position_words(KEY, position)
    return unmix32(unmix32(wanted) ^ second) ^ first


@given(st.integers(0, MASK))
def test_the_mixer_is_a_bijection(x: int) -> None:
    assert unmix32(mix32(x)) == x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("wanted", [0, 1, 2**31, MASK - 300, MASK - 1, MASK])
def test_gumbel_is_finite_for_every_hash(wanted: int, dtype: npt.DTypeLike) -> None:
    token_ids = np.array([token_with_hash(5, wanted)])
    assert token_hashes(KEY, 5, token_ids).tolist() == [wanted]
    noise = gumbel(KEY, 5, token_ids, dtype)
    assert np.isfinite(noise).all()
    uniform = (wanted + 0.5) / 2.0**32
    if dtype == np.float64 or wanted < MASK - 300:
        assert math.isclose(noise[0], -math.log(-math.log1p(-uniform)), rel_tol=1e-5)
    else:
        assert -3.2 < noise[0] < -2.5  # float32 ends at 1 - 2**-24


# --- statistics (the keys are fixed, so these cannot fail by chance) ------------------------------


def is_uniform(counts: Counts) -> bool:
    """Chi-square against equal shares, at six sigma."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    return bool(abs(statistic - freedom) < 6 * math.sqrt(2 * freedom))


def test_the_statistic_sees_a_skew() -> None:
    assert not is_uniform(np.array([10_400, 9_600, 10_000, 10_000]))


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_every_byte_of_the_hash_is_uniform_over_tokens(shift: int) -> None:
    hashes = token_hashes(KEY, 3, np.arange(200_000))
    assert is_uniform(np.bincount(hashes >> shift & 0xFF, minlength=256))


def test_hashes_are_uniform_over_positions_and_keys() -> None:
    token = np.array([42])
    over_positions = [int(token_hashes(KEY, position, token)[0]) for position in range(20_000)]
    assert is_uniform(np.bincount(np.array(over_positions) >> 26, minlength=64))
    keys = (noise_key(b"%d" % seed, [1, 2]) for seed in range(20_000))
    over_keys = [int(token_hashes(key, 3, token)[0]) for key in keys]
    assert is_uniform(np.bincount(np.array(over_keys) >> 26, minlength=64))


@pytest.mark.parametrize("step", ["position", "token"])
def test_neighbours_are_independent(step: str) -> None:
    token_ids = np.arange(100_000)
    here = token_hashes(KEY, 7, token_ids) >> 28
    there = token_hashes(KEY, 7 + (step == "position"), token_ids + (step == "token")) >> 28
    assert is_uniform(np.bincount(here * 16 + there, minlength=256))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_and_variance_are_those_of_a_gumbel(dtype: npt.DTypeLike) -> None:
    noise = gumbel(KEY, 11, np.arange(400_000), dtype).astype(np.float64)
    assert abs(noise.mean() - np.euler_gamma) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.02


def test_arg_max_with_the_noise_samples_the_distribution() -> None:
    probs = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    token_ids = np.arange(len(probs))
    draws = [
        int(np.argmax(np.log(probs) + gumbel(KEY, position, token_ids)))
        for position in range(20_000)
    ]
    counts = np.bincount(draws, minlength=len(probs))
    expected = probs * len(draws)
    assert ((counts - expected) ** 2 / expected).sum() < 4 + 6 * math.sqrt(8)


def test_no_token_has_the_same_noise_at_every_position() -> None:
    """A token equal to a key word must not cancel what the position brought in."""
    for word in key_words(KEY):
        token = np.array([word & 0xFFFFFF])
        small = KEY[:8] + int(token[0]).to_bytes(4, "little") + KEY[12:]
        hashes = {int(token_hashes(small, position, token)[0]) for position in range(64)}
        assert len(hashes) > 60
