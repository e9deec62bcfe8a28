"""What the rest of the program may ask of a language model. No tensors cross this line.

A **sequence** is one session's cache inside a model: `prefix` rows that hold committed tokens and
are seen by everything, then a **tail** of slots that hold tree rows. Slots are numbered from 0 in
the order in which rows were written and renumbered only by `compact`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from specedge_p2p.errors import ClearError
from specedge_p2p.lm.prefix import PageName
from specedge_p2p.noise import NoiseKey

TokenIds = npt.NDArray[np.int32]
MAX_TAIL_SLOTS = 2048


class ModelError(ClearError):
    """The model cannot be loaded or cannot do what was asked; the text says what to do."""


class OutOfCache(ModelError):
    """No free cache page is left; nothing was changed."""


class OutOfMemory(OutOfCache):
    """Pages are left, but not the memory for the forward itself; a smaller one may do."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is chosen from logits. `temperature` 0 is greedy and ignores the rest.

    `top_k` 0, `top_p` 1 and `min_p` 0 switch their filter off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is."""

    name: str
    vocab_size: int
    max_context: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    fingerprint: bytes
    """BLAKE2b-16 over config and weight-file names, sizes and first bytes."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """How large a model's cache is.

    Args:
        num_rows: rows over all sequences.
        page_rows: rows of a page: a sequence takes whole pages, and full ones can be shared.
        can_share: whether `share_prefix` and `adopt_prefix` do anything.
    """

    num_rows: int
    page_rows: int = 1
    can_share: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """The new rows of one sequence in one forward.

    Args:
        sequence: handle of the sequence.
        token_ids: int32 [T].
        positions: int32 [T], absolute positions of these tokens.
        visible: None for causal rows that become prefix at once (only while the tail is empty);
            else uint64 [T, W], bit j of row i says that row i sees tail slot j. The new rows take
            the next free slots in order and must see themselves.
        num_outputs: outputs are wanted for the last `num_outputs` rows.
    """

    sequence: int
    token_ids: TokenIds
    positions: TokenIds
    visible: npt.NDArray[np.uint64] | None
    num_outputs: int


@dataclass(frozen=True, slots=True)
class Children:
    """The best continuations of each output row, best first.

    `log_probs` are natural logarithms of the probability that the target chooses the token, as far
    as the draft model can tell: log softmax(beta (logp / T + gumbel)), beta = 1; at temperature 0
    log softmax(logits).
    """

    token_ids: TokenIds  # [num_outputs, branch_width]
    log_probs: npt.NDArray[np.float32]  # [num_outputs, branch_width]


WhileBusy = Callable[[Callable[[], bool]], None]
"""Called while a device computes, with the question whether it is done. May return before."""


@runtime_checkable
class BusyModel(Protocol):
    """A model that may compute on a device beside the program, which can do other things then."""

    while_busy: WhileBusy


class LanguageModel(Protocol):
    """A decoder-only model with a cache of its own. Synchronous; not thread-safe."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def cache(self) -> CacheInfo: ...

    @property
    def num_free_rows(self) -> int:
        """Rows that can still be written before `OutOfCache`: those of pages that nobody holds."""
        ...

    def add_sequence(self, sequence: int, sampling: SamplingParams, key: NoiseKey) -> None:
        """Open an empty sequence. Raises ValueError when the handle is in use."""
        ...

    def drop_sequence(self, sequence: int) -> None:
        """Free a sequence's rows; unknown handles are ignored."""
        ...

    def share_prefix(self, sequence: int, names: Sequence[PageName]) -> None:
        """Let others adopt the first pages of a sequence's prefix, a name for each.

        Raises ValueError when the prefix does not fill so many pages. A model that cannot share
        does nothing.
        """
        ...

    def adopt_prefix(self, sequence: int, names: Sequence[PageName]) -> int:
        """Lengthen a prefix by pages that were shared under these names; returns the new rows.

        `names` are those of the sequence's own pages from the first one on. Taken is what follows
        the pages that it has, up to the first name that is not known; nothing unless the prefix
        ends with a page and the tail is empty. Nothing is copied.
        """
        ...

    def num_prefix_rows(self, sequence: int) -> int: ...

    def num_tail_rows(self, sequence: int) -> int: ...

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        """One forward; per entry int32 [num_outputs]: the token chosen after each output row.

        The token chosen after a row at position p is noised with position p + 1. Raises OutOfCache
        before anything is written, ValueError for rows that the port forbids.
        """
        ...

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        """One forward; per entry the `branch_width` best children of each output row."""
        ...

    def compact(self, sequence: int, commit: Sequence[int], keep: Sequence[int] = ()) -> None:
        """Append tail slots `commit`, in order, to the prefix; `keep` becomes the new tail.

        All other tail slots are freed. With both empty the whole tail is dropped.
        """
        ...
