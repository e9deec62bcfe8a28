"""The arithmetic of the toy model: hashes in place of layers, modulo 2**64."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specedge_p2p.lm.ports import TokenIds
from specedge_p2p.lm.toy_text import BOS, EOS

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_UNREACHABLE = -60.0

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ToyParams:
    """Which function of the tokens the logits are.

    Args:
        vocab_size: tokens; 0 is the beginning and is never chosen, 1 is the end of sequence.
        seed: models of one seed agree, up to `perturbation`.
        sharpness: spread of the logits; at 2 the best token has a probability of about 0.65.
        eos_bias: added to the logit of the end of sequence.
        perturbation: spread of what is added to the logits: how unskilled a draft model is. With
            the other values as they are, it agrees with the unperturbed model on 0.89, 0.82, 0.71,
            0.57, 0.29 of the greedy tokens at 0.3, 0.5, 0.8, 1.2, 2.5.
        perturbation_seed: which perturbation.
    """

    vocab_size: int = 32
    seed: int = 0
    sharpness: float = 2.0
    eos_bias: float = -8.0
    perturbation: float = 0.0
    perturbation_seed: int = 1


def first_values(params: ToyParams, token_ids: TokenIds, positions: TokenIds) -> Words:
    step = np.uint64(_STEP)
    places = mix(positions.astype(np.uint64) * step + np.uint64(params.seed))
    return mix(token_ids.astype(np.uint64) * step + places)


def row_logits(params: ToyParams, states: Words) -> Floats:
    """Float64 [R, V] from the states [R]."""
    logits = params.sharpness * _spread(states, 3, params.vocab_size)
    if params.perturbation:
        stream = 4 + params.perturbation_seed
        logits += params.perturbation * _spread(states, stream, params.vocab_size)
    logits[:, BOS] = _UNREACHABLE
    logits[:, EOS] += params.eos_bias
    return logits


def _spread(states: Words, stream: int, vocab_size: int) -> Floats:
    """Independent Gumbel numbers [R, V], a function of state, stream and token."""
    tokens = np.arange(vocab_size, dtype=np.uint64) * np.uint64(_STEP)
    mixed = mix(mix(states + np.uint64(stream))[:, None] ^ tokens)
    uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    numbers: Floats = -np.log(-np.log(uniform))
    return numbers


def advance(
    params: ToyParams, sums: tuple[int, int], token: int, position: int
) -> tuple[int, int, int]:
    """One token further: the sums of both values and the state that the logits are a hash of."""
    first = _mix_int(token * _STEP + _mix_int(position * _STEP + params.seed))
    sum_first = (sums[0] + first) & _MASK
    second = _mix_int(sum_first ^ _mix_int(first + 1))
    sum_second = (sums[1] + second) & _MASK
    return sum_first, sum_second, _mix_int(sum_second ^ _mix_int(second + 2))


def mix(x: Words) -> Words:
    """The finaliser of SplitMix64, modulo 2**64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
