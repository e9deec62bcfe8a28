"""Which tokens rounding may choose: the output law for float32 and bfloat16.

A float64 reference gives the logits. Rounding, and the order in which a batch adds things up, move
the difference of two logits by at most `error_bound`. A token is *possible* if it is not surely cut
by top_k, top_p or min_p, and no token that surely passes them beats its score by more than that. In
float64 exactly one token is possible.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from specedge_p2p import noise
from specedge_p2p.lm.choosing import choose_token
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.noise import NoiseKey

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Logits = Callable[[list[int]], Floats]
"""From all tokens to the float64 logits [V] after the last one."""

RELATIVE_ERRORS = {"float64": 0.0, "float32": 5e-5, "bfloat16": 0.5}
"""Of the difference of two logits, in standard deviations of all logits. The largest that was seen
on random models of a few thousand weights, which are the worst: 1.3e-5 and 0.42; on the demo pair
see docs/determinism.md."""


def error_bound(logits: Floats, dtype: str) -> float:
    """By how much arithmetic in `dtype` may move the difference of two of these logits."""
    return RELATIVE_ERRORS[dtype] * float(np.std(logits))


def possible_tokens(
    logits: Floats, sampling: SamplingParams, key: NoiseKey, position: int, bound: float
) -> Bools:
    """Bool [V]: the tokens that may stand at `position` if logit differences err by `bound`."""
    possible = np.zeros(len(logits), np.bool_)
    if bound == 0:
        possible[choose_token(logits, sampling, key, position)] = True
        return possible
    if sampling.temperature == 0:
        possible[logits >= logits.max() - bound] = True
        return possible
    divided, margin = logits / sampling.temperature, bound / sampling.temperature
    surely, maybe = _kept(divided, sampling, margin)
    scores = divided + noise.gumbel(key, position, np.arange(len(logits)))
    best = scores[surely].max(initial=-np.inf)
    possible[maybe & (scores >= best - margin)] = True
    return possible


def assert_possible(
    token: int, logits: Floats, sampling: SamplingParams, key: NoiseKey, position: int, dtype: str
) -> None:
    """One token, chosen in `dtype`, against the reference's logits."""
    possible = possible_tokens(logits, sampling, key, position, error_bound(logits, dtype))
    assert possible[token], (
        f"token {token} at position {position}: in {dtype} only {np.flatnonzero(possible)} can be"
    )


def assert_same_or_near_tie(
    got: Sequence[int],
    expected: Sequence[int],
    prompt: Sequence[int],
    reference: Logits,
    sampling: SamplingParams,
    key: NoiseKey,
    dtype: str,
) -> int | None:
    """Two runs are equal, or where they first differ both tokens are possible.

    Args:
        got: tokens of a run in `dtype`.
        expected: those of another, in `dtype` or better.
        prompt: what both go on from.
        reference: the same weights in float64.
        sampling: of both runs, with `key`.
        key: see `sampling`.
        dtype: of the arithmetic.

    Returns:
        Where they first differ, None where they do not.
    """
    for i, (one, other) in enumerate(zip(got, expected, strict=False)):
        if one != other:
            text = [*prompt, *expected[:i]]
            logits = reference(text)
            for token in (one, other):
                assert_possible(token, logits, sampling, key, len(text), dtype)
            return i
    assert len(got) == len(expected), "one run ended before the other, without a token differing"
    return None


def _kept(divided: Floats, sampling: SamplingParams, margin: float) -> tuple[Bools, Bools]:
    """Bool [V] each: what the filters surely keep, and what they may keep."""
    surely = np.ones(len(divided), np.bool_)
    maybe = surely.copy()
    if 0 < sampling.top_k < len(divided):
        last = np.partition(divided, -sampling.top_k)[-sampling.top_k]
        surely &= divided > last + margin
        maybe &= divided >= last - margin
        surely[np.argmax(divided)] = True  # nothing can cut the best
    if sampling.top_p < 1:
        in_front = _mass_in_front(divided, surely, maybe, margin)
        surely &= in_front[1] < sampling.top_p
        maybe &= in_front[0] < sampling.top_p
    if sampling.min_p > 0:
        threshold = divided.max() + np.log(sampling.min_p)
        surely &= divided >= threshold + margin
        maybe &= divided >= threshold - margin
    return surely, maybe


def _mass_in_front(divided: Floats, surely: Bools, maybe: Bools, margin: float) -> Floats:
    """The least and the most probability [2, V] of the tokens that stand before each one."""
    order = np.argsort(-divided, kind="stable")
    descending = divided[order]
    weights = np.exp(descending - descending[0])
    least = np.concatenate([[0.0], np.cumsum(weights * surely[order])])
    most = np.concatenate([[0.0], np.cumsum(weights * maybe[order])])
    num_before = np.searchsorted(-descending, -(divided + margin), side="left")
    num_around = np.searchsorted(-descending, -(divided - margin), side="right")
    # A token may stand behind those around it, but never behind itself.
    own = np.exp(divided - descending[0])
    return np.stack(
        [
            least[num_before] / most[-1] * np.exp(-margin),
            (most[num_around] - own) / least[-1] * np.exp(margin),
        ]
    )
