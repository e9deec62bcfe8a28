"""The sampling noise: one number per (key, position, token), the same on every machine.

Drafter-invariant sampling picks ``argmax(logits / T + gumbel)``. The noise depends on nothing but
the session's key, the absolute position of the token that is being chosen and the token's id, so no
drafter, batch or retry can change a token. ``lm/sampling.py`` holds the same arithmetic in torch;
the vectors in ``tests/test_noise.py`` bind the two.

All products are 32 x 32 bit and only their low 32 bits are kept, so signed and unsigned 64-bit
integers give the same result on every device.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16
_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1

NoiseKey = bytes
"""16 bytes, read as four little-endian 32-bit words."""


def noise_key(seed: bytes, prompt_ids: Sequence[int]) -> NoiseKey:
    """Derive a session's key: one-way in `seed`, different for every prompt.

    Args:
        seed: the user's seed as bytes, or 16 fresh random bytes.
        prompt_ids: the token ids of the prompt.
    """
    digest = blake2b(digest_size=KEY_BYTES, person=b"specedge-noise-1")
    digest.update(len(seed).to_bytes(4, "little"))
    digest.update(seed)
    digest.update(np.asarray(prompt_ids, dtype="<u4").tobytes())
    return digest.digest()


def seed_bytes(seed: int) -> bytes:
    """The bytes of an integer seed of any size and sign."""
    return seed.to_bytes(seed.bit_length() // 8 + 1, "little", signed=True)


def key_words(key: NoiseKey) -> tuple[int, int, int, int]:
    """The key as four 32-bit words; raises ValueError for a key of the wrong length."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a noise key has {KEY_BYTES} bytes, got {len(key)}")
    a, b, c, d = (int.from_bytes(key[i : i + 4], "little") for i in range(0, KEY_BYTES, 4))
    return a, b, c, d


def mix32(x: int) -> int:
    """A bijective 32-bit mixer (the `lowbias32` constants found by C. Wellons' search)."""
    x ^= x >> 16
    x = (x * 0x7FEB352D) & _MASK
    x ^= x >> 15
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def position_words(key: NoiseKey, position: int) -> tuple[int, int]:
    """What all tokens of one position share: two 32-bit words."""
    a, b, c, d = key_words(key)
    first = mix32(mix32((position * _GOLDEN & _MASK) ^ a) ^ b)
    return first, mix32(mix32(first ^ c) ^ d)


def token_hashes(
    key: NoiseKey, position: int, token_ids: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """32-bit hashes, as int64, one per token id; any shape."""
    first, second = position_words(key, position)
    x = token_ids.astype(np.int64) & _MASK
    for word in (first, second):
        x = _mix32_array(x ^ word)
    return x


def gumbel(
    key: NoiseKey,
    position: int,
    token_ids: npt.NDArray[np.integer],
    dtype: npt.DTypeLike = np.float64,
) -> npt.NDArray[np.floating]:
    """Standard Gumbel noise for choosing the token at `position`, one per token id."""
    uniform = (token_hashes(key, position, token_ids).astype(dtype) + 0.5) / 2.0**32
    if np.dtype(dtype) == np.float32:  # 2**32 - 1 + 0.5 rounds up to 2**32, where log1p is -inf
        uniform = np.minimum(uniform, np.float32(1 - 2**-24))
    noise: npt.NDArray[np.floating] = -np.log(-np.log1p(-uniform))
    return noise


def _mix32_array(x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
