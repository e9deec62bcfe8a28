"""Choosing tokens on the device: the torch twin of `noise.py` and `choosing.py`.

Hashes are integers and equal on every device; the floats that follow may differ by ulps. Logits are
taken to float32; float64 stays. On a CPU hashes, sorting and the arg-max go through numpy, which
does them several times as fast.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.to_device import on_device
from specedge_p2p.noise import NoiseKey, key_words

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1
_MIX_FIRST, _MIX_SECOND = 0x7FEB352D, 0x846CA68B
_NUM_IN_COLUMN = 8
NUM_RANKED = 64
"""Tokens of a row, at least, that may become children when noise is drawn."""
_SLICE_ELEMENTS_CPU, _SLICE_ELEMENTS = 1 << 16, 1 << 24
"""Rows are taken in slices of so many logits: on a CPU hashes then stay in its cache, on a GPU they
need bounded memory."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How the token of each row of logits is chosen: three columns of the same length.

    `positions` are those of the chosen tokens.
    """

    sampling: Sequence[SamplingParams]
    keys: Sequence[NoiseKey]
    positions: Sequence[int]

    def part(self, start: int, stop: int) -> "Draws":
        span = slice(start, stop)
        return Draws(self.sampling[span], self.keys[span], self.positions[span])


def choose_tokens(logits: Tensor, draws: Draws) -> Tensor:
    """Token ids int64 [R] from logits [R, V]; ties go to the lowest token id.

    Raises torch.OutOfMemoryError on a GPU that has not even a slice's memory left.
    """
    is_on_cpu = logits.device.type == "cpu"
    if all(sampling.temperature <= 0 for sampling in draws.sampling):
        if is_on_cpu:
            return _first_best(_wide(logits))
        # what is widened compares as before
        return torch.cat([first_best_on_device(part) for part, _ in _slices(logits, draws)])
    return torch.cat(
        [_first_best(_scores(part, d, filtered=True)) for part, d in _slices(logits, draws)]
    )


def rank_children(logits: Tensor, draws: Draws, branch_width: int) -> tuple[Tensor, Tensor]:
    """Token ids int64 and log-probabilities float32 [R, branch_width], best first.

    The score of a child is log softmax(log p / T + noise); without noise at temperature 0. Only
    the likeliest tokens get noise: that of a whole vocabulary would take a third of a draft level,
    and what stands further behind is next to never chosen. Raises as `choose_tokens` does.
    """
    if logits.device.type == "cpu":
        return _rank(logits, draws, branch_width)
    parts = [_rank(part, d, branch_width) for part, d in _slices(logits, draws)]
    token_ids, log_probs = zip(*parts, strict=True)
    return torch.cat(token_ids), torch.cat(log_probs)


def _rank(logits: Tensor, draws: Draws, branch_width: int) -> tuple[Tensor, Tensor]:
    num_ranked = max(NUM_RANKED, branch_width)
    if num_ranked >= logits.shape[1] or all(s.temperature <= 0 for s in draws.sampling):
        token_ids, ranked = None, logits
    else:
        ranked, token_ids = likeliest(logits, num_ranked)
    scores = _wide(ranked)
    noisy = [i for i, sampling in enumerate(draws.sampling) if sampling.temperature > 0]
    if noisy:
        rows = on_device(noisy, logits.device)
        some = slice(None) if len(noisy) == len(scores) else rows
        ids = torch.arange(logits.shape[1], device=logits.device)
        ids = ids[None] if token_ids is None else token_ids[some]
        noise = gumbel(_row_hashes(draws, noisy, ids), scores.dtype)
        temperatures = [draws.sampling[i].temperature for i in noisy]
        noise.add_(scores[some] / _column(temperatures, scores))
        scores = noise if len(noisy) == len(scores) else scores.index_copy(0, rows, noise)
    best = torch.log_softmax(scores, -1).topk(branch_width, -1)
    indices = best.indices if token_ids is None else token_ids.gather(1, best.indices)
    return indices, best.values.clamp(max=0).float()


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Logits and token ids [R, C] of the `count` largest of each row [R, V], and of some more.

    Taken are the columns whose best is one of the `count` best: whoever is among the largest stands
    in one of those. That costs half of finding the largest alone.
    """
    num_rows, vocab_size = logits.shape
    num_columns = vocab_size // _NUM_IN_COLUMN
    if vocab_size % _NUM_IN_COLUMN or num_columns < 2 * count:
        found = logits.topk(count, -1, sorted=False)
        return found.values, found.indices
    columns = logits.view(num_rows, _NUM_IN_COLUMN, num_columns)
    best = columns.amax(1).topk(count, -1, sorted=False).indices[:, None]
    first_ids = torch.arange(_NUM_IN_COLUMN, device=logits.device)[:, None] * num_columns
    values = columns.gather(2, best.expand(num_rows, _NUM_IN_COLUMN, count))
    return values.view(num_rows, -1), (best + first_ids).view(num_rows, -1)


def _row_hashes(draws: Draws, rows: Sequence[int], token_ids: Tensor) -> Tensor:
    keys = [draws.keys[i] for i in rows]
    positions = [draws.positions[i] for i in rows]
    if token_ids.device.type == "cpu":
        return torch.from_numpy(hashes_on_cpu(keys, positions, token_ids.numpy()))
    words = on_device([key_words(key) for key in keys], token_ids.device)
    return token_hashes(words, on_device(positions, token_ids.device), token_ids)


def hashes_on_cpu(
    keys: Sequence[NoiseKey], positions: Sequence[int], token_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """The same as `token_hashes`; 32-bit numbers wrap around by themselves."""
    words = np.frombuffer(b"".join(keys), "<u4").reshape(len(keys), -1).astype(np.uint32)
    first = np.array(positions, np.uint32)[:, None] * np.uint32(_GOLDEN)
    for word in range(2):
        first = _mix_on_cpu(first ^ words[:, word, None])
    second = first
    for word in range(2, 4):
        second = _mix_on_cpu(second ^ words[:, word, None])
    return _mix_on_cpu(_mix_on_cpu(token_ids.astype(np.uint32) ^ first) ^ second)


def token_hashes(words: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """32-bit hashes int64 [R, V] from key words [R, 4], positions [R] and token ids [V]."""
    a, b, c, d = words.unbind(1)
    first = _mix32(_mix32((positions * _GOLDEN & _MASK) ^ a) ^ b)
    second = _mix32(_mix32(first ^ c) ^ d)
    return _mix32(_mix32(token_ids ^ first[:, None]) ^ second[:, None])


def gumbel(hashes: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard Gumbel noise of the hashes, in float32 or float64."""
    noise = hashes.to(dtype).add_(0.5).mul_(2.0**-32)
    if dtype == torch.float32:  # 2**32 - 1 + 0.5 rounds up to 2**32, where log1p is -inf
        noise.clamp_(max=1 - 2**-24)
    return noise.neg_().log1p_().neg_().log_().neg_()


def _slices(logits: Tensor, draws: Draws) -> list[tuple[Tensor, Draws]]:
    num_elements = _SLICE_ELEMENTS_CPU if logits.device.type == "cpu" else _SLICE_ELEMENTS
    size = max(1, num_elements // logits.shape[1])
    return [
        (logits[start : start + size], draws.part(start, start + size))
        for start in range(0, max(1, len(logits)), size)
    ]


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _scores(logits: Tensor, draws: Draws, *, filtered: bool) -> Tensor:
    scores = _wide(logits)
    noisy = [i for i, sampling in enumerate(draws.sampling) if sampling.temperature > 0]
    if not noisy:
        return scores
    if len(noisy) == len(scores):
        return _noisy_scores(scores, draws, filtered=filtered)
    rows = on_device(noisy, logits.device)
    some = Draws(
        [draws.sampling[i] for i in noisy],
        [draws.keys[i] for i in noisy],
        [draws.positions[i] for i in noisy],
    )
    return scores.index_copy(0, rows, _noisy_scores(scores[rows], some, filtered=filtered))


def _noisy_scores(logits: Tensor, draws: Draws, *, filtered: bool) -> Tensor:
    temperatures = [sampling.temperature for sampling in draws.sampling]
    scores = logits / _column(temperatures, logits)
    if filtered:
        scores = filter_logits(scores, draws.sampling)
    token_ids = torch.arange(logits.shape[1], device=logits.device)
    hashes = _row_hashes(draws, range(len(logits)), token_ids)
    return gumbel(hashes, logits.dtype).add_(scores)


def filter_logits(logits: Tensor, sampling: Sequence[SamplingParams]) -> Tensor:
    """Logits [R, V], divided by the temperature already, with what the filters drop at -inf.

    A filter keeps whatever ties with the last token that it keeps.
    """
    vocab_size = logits.shape[1]
    if any(0 < s.top_k < vocab_size for s in sampling):
        counts = [s.top_k if 0 < s.top_k < vocab_size else vocab_size for s in sampling]
        most = max(count for count in counts if count < vocab_size)
        last = on_device([min(c, most) - 1 for c in counts], logits.device)[:, None]
        threshold = logits.topk(most, -1).values.gather(1, last)
        is_off = on_device([c == vocab_size for c in counts], logits.device)[:, None]
        logits = _keep(logits, threshold.masked_fill(is_off, -math.inf))
    if any(s.top_p < 1 for s in sampling):
        logits = _keep(logits, _top_p_threshold(logits, [s.top_p for s in sampling]))
    if any(s.min_p > 0 for s in sampling):
        offsets = [math.log(s.min_p) if s.min_p > 0 else -math.inf for s in sampling]
        logits = _keep(logits, logits.amax(-1, keepdim=True) + _column(offsets, logits))
    return logits


def _top_p_threshold(logits: Tensor, top_p: Sequence[float]) -> Tensor:
    """Per row the smallest logit of the shortest head of the sorted tokens that reaches top_p."""
    descending = _sorted(logits).flip(-1)
    probs = torch.softmax(descending, -1)
    before = probs.cumsum(-1) - probs
    num_kept = (before < _column(top_p, logits)).sum(-1, keepdim=True).clamp(min=1)
    is_off = on_device([p >= 1 for p in top_p], logits.device)[:, None]
    return descending.gather(1, num_kept - 1).masked_fill(is_off, -math.inf)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return on_device(values, like.device, like.dtype)[:, None]


def _keep(logits: Tensor, threshold: Tensor) -> Tensor:
    return logits.masked_fill(logits < threshold, -math.inf)


def _sorted(logits: Tensor) -> Tensor:
    """Every row ascending."""
    if logits.device.type == "cpu":
        return torch.from_numpy(np.sort(logits.numpy(), axis=-1))
    return logits.sort(-1).values


def _first_best(scores: Tensor) -> Tensor:
    """The lowest index of the largest score, V where a score is no number."""
    if scores.device.type == "cpu":
        return _first_best_on_cpu(scores.numpy())
    return first_best_on_device(scores)


def _first_best_on_cpu(scores: npt.NDArray[np.floating]) -> Tensor:
    """Of equals the arg-max of numpy takes the first; what is no number it takes for the best."""
    best = scores.argmax(-1)
    best[np.isnan(scores[np.arange(len(best)), best])] = scores.shape[1]
    return torch.from_numpy(best)


def first_best_on_device(scores: Tensor) -> Tensor:
    """The same on any device; torch's arg-max promises no order of equals."""
    is_best = scores == scores.amax(-1, keepdim=True)
    indices = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
    return torch.where(is_best, indices, scores.shape[1]).amin(-1).long()


def _mix32(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)  # a tensor of its own, so the rest may be in place
    x.mul_(_MIX_FIRST).bitwise_and_(_MASK)
    x.bitwise_xor_(x >> 15)
    x.mul_(_MIX_SECOND).bitwise_and_(_MASK)
    return x.bitwise_xor_(x >> 16)


def _mix_on_cpu(x: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """In place."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(_MIX_FIRST)
    x ^= x >> np.uint32(15)
    x *= np.uint32(_MIX_SECOND)
    x ^= x >> np.uint32(16)
    return x
