"""How a token is chosen from logits and how children are ranked: the plain numpy form.

`sampling.py` holds the same in torch. Everything is in float64, one row at a time:
``/ T``, then `top_k`, `top_p`, `min_p` in that order, then noise, then arg-max. A filter keeps
whatever ties with the last token that it keeps, so that no order of equal logits matters.
"""

import numpy as np
import numpy.typing as npt

from specedge_p2p import noise
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.noise import NoiseKey

Floats = npt.NDArray[np.float64]


def choose_token(logits: Floats, sampling: SamplingParams, key: NoiseKey, position: int) -> int:
    """The token that stands at `position`; ties go to the lowest token id."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    scores = filter_logits(logits / sampling.temperature, sampling)
    return int(np.argmax(scores + noise.gumbel(key, position, np.arange(len(logits)))))


def filter_logits(logits: Floats, sampling: SamplingParams) -> Floats:
    """Logits [V], divided by the temperature already, with what the filters drop at -inf."""
    if 0 < sampling.top_k < len(logits):
        logits = _keep(logits, np.partition(logits, -sampling.top_k)[-sampling.top_k])
    if sampling.top_p < 1:
        logits = _keep(logits, _top_p_threshold(logits, sampling.top_p))
    if sampling.min_p > 0:
        logits = _keep(logits, logits.max() + np.log(sampling.min_p))
    return logits


def rank_children(
    logits: Floats, temperature: float, key: NoiseKey, position: int, branch_width: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The best tokens for `position` with log softmax(logits / T + noise), best first."""
    scores = logits
    if temperature > 0:
        scores = logits / temperature + noise.gumbel(key, position, np.arange(len(logits)))
    best = np.argsort(-scores, kind="stable")[:branch_width]
    log_probs = scores[best] - scores.max() - np.log(np.exp(scores - scores.max()).sum())
    return best.astype(np.int32), np.minimum(log_probs, 0.0).astype(np.float32)


def _keep(logits: Floats, threshold: np.float64) -> Floats:
    return np.where(logits >= threshold, logits, -np.inf)


def _top_p_threshold(logits: Floats, top_p: float) -> np.float64:
    """The smallest logit of the shortest head of the sorted tokens that reaches `top_p`."""
    descending = np.sort(logits)[::-1]
    probs = np.exp(descending - descending[0])
    before = np.cumsum(probs) - probs
    num_kept = max(1, int((before < top_p * probs.sum()).sum()))
    threshold: np.float64 = descending[num_kept - 1]
    return threshold
