"""What a row sees, as the mask that attention adds to its scores; per sliding window where needed.

A sliding window of W lets a token see itself and the W - 1 tokens before it. The slots that a row
sees hold its own text, in order: the committed prefix, then its ancestors (parents lie before
children), then itself. So the window is the last W of the slots that it sees, and neither siblings
in between nor what was compacted away can change that.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def within_window(seen: npt.NDArray[np.bool_], window: int) -> npt.NDArray[np.bool_]:
    """Of bool [..., S] the last `window` slots that each row sees."""
    num_seen = np.cumsum(seen, axis=-1, dtype=np.int32)
    is_near: npt.NDArray[np.bool_] = num_seen > num_seen[..., -1:] - window
    return seen & is_near


class MaskBias:
    """0 where a row sees, -inf elsewhere; made once per window for all layers that have it."""

    def __init__(self, seen: npt.NDArray[np.bool_], heads_per_kv: int, like: Tensor) -> None:
        """From bool [B, T, S]; every row must see a slot. `like` gives dtype and device."""
        self._seen = seen
        self._heads_per_kv = heads_per_kv
        self._like = like
        self._biases: dict[int | None, Tensor] = {}

    def of(self, window: int | None) -> Tensor:
        """[B, 1, heads_per_kv * T, S]; None: no window."""
        if window is not None and window >= self._seen.shape[2]:
            window = None
        if window not in self._biases:
            self._biases[window] = self._bias(window)
        return self._biases[window]

    def _bias(self, window: int | None) -> Tensor:
        seen = self._seen if window is None else within_window(self._seen, window)
        num_entries, num_rows, num_cached = seen.shape
        hidden = torch.from_numpy(~seen).to(self._like.device)[:, None, None]
        bias = torch.zeros(
            (num_entries, 1, self._heads_per_kv, num_rows, num_cached),
            dtype=self._like.dtype,
            device=self._like.device,
        ).masked_fill_(hidden, float("-inf"))
        return bias.view(num_entries, 1, self._heads_per_kv * num_rows, num_cached)
