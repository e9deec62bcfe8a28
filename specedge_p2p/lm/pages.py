"""Which cache rows belong to which sequence: pages of 16 rows, lent from one bounded pool."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from specedge_p2p.lm.ports import OutOfCache, SamplingParams
from specedge_p2p.noise import NoiseKey

PAGE_ROWS = 16


class PagePool:
    """Free pages. Page p holds the physical rows from p * PAGE_ROWS on."""

    def __init__(self, num_pages: int) -> None:
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, num_pages: int) -> list[int]:
        """Lend pages; raises OutOfCache and lends none when there are too few."""
        if num_pages > len(self._free):
            raise OutOfCache(f"{num_pages} cache pages wanted, {len(self._free)} free")
        return [self._free.pop() for _ in range(num_pages)]

    def give_back(self, pages: Sequence[int]) -> None:
        self._free.extend(pages)


@dataclass(slots=True)
class CachedSequence:
    """One sequence's rows: first the prefix, then the tail, over its pages in order."""

    sampling: SamplingParams
    key: NoiseKey
    num_prefix: int = 0
    num_tail: int = 0
    pages: list[int] = field(default_factory=list)
    physical: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Physical row of every logical row, int64 [len(pages) * PAGE_ROWS]."""

    @property
    def num_rows(self) -> int:
        return self.num_prefix + self.num_tail

    def num_missing_pages(self, num_new_rows: int) -> int:
        """Pages to be taken before `num_new_rows` more rows fit."""
        return max(0, -(-(self.num_rows + num_new_rows) // PAGE_ROWS) - len(self.pages))

    def extend(self, pages: Sequence[int]) -> None:
        self.pages.extend(pages)
        self._renumber()

    def shrink(self) -> list[int]:
        """Take out and return the pages that hold no row any more."""
        num_needed = -(-self.num_rows // PAGE_ROWS)
        spare = self.pages[num_needed:]
        if spare:
            del self.pages[num_needed:]
            self._renumber()
        return spare

    def _renumber(self) -> None:
        starts = np.array(self.pages, np.int64)[:, None] * PAGE_ROWS
        self.physical = (starts + np.arange(PAGE_ROWS)).ravel()
