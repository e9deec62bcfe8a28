"""Which cache rows belong to which sequence: pages of 16 rows, lent from one bounded pool.

A page that is full of committed tokens may be named (see prefix.py) and is then shared: it is not
written again, counts its holders, and keeps its rows when the last of them leaves. Such an idle
page is as good as free: when no other page is left, the one that idles longest is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from specedge_p2p.lm.ports import OutOfCache, SamplingParams
from specedge_p2p.lm.prefix import PageName
from specedge_p2p.noise import NoiseKey

PAGE_ROWS = 16


@dataclass(slots=True)
class _Named:
    """A page that can be found by its name."""

    name: PageName
    num_holders: int


class PagePool:
    """Free, held and idle pages."""

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self._num_touched = 0
        """Pages below it were lent before; the others have never been."""
        self._free: list[int] = []
        self._pages: dict[PageName, int] = {}
        self._named: dict[int, _Named] = {}
        self._idle: dict[int, None] = {}
        """Named pages without a holder; who idles longest comes first."""

    @property
    def num_free(self) -> int:
        """Pages that `take` can lend, idle ones included."""
        return self._num_pages - self._num_touched + len(self._free) + len(self._idle)

    def take(self, num_pages: int) -> list[int]:
        """Lend pages; raises OutOfCache and lends none when there are too few."""
        if num_pages > self.num_free:
            raise OutOfCache(f"{num_pages} cache pages wanted, {self.num_free} free")
        return [self._take_one() for _ in range(num_pages)]

    def give_back(self, pages: Sequence[int]) -> None:
        """One holder of each page leaves. Of a prefix the end is forgotten first."""
        for page in reversed(pages):
            named = self._named.get(page)
            if named is None:
                self._free.append(page)
                continue
            named.num_holders -= 1
            if not named.num_holders:
                self._idle[page] = None

    def share(self, pages: Sequence[int], names: Sequence[PageName]) -> None:
        """Name pages that their one holder will not write again.

        A name that another page bears already is left to that one.
        """
        for page, name in zip(pages, names, strict=True):
            if page not in self._named and name not in self._pages:
                self._pages[name] = page
                self._named[page] = _Named(name, num_holders=1)

    def adopt(self, names: Sequence[PageName]) -> list[int]:
        """Hold the pages of the longest known beginning of `names` too."""
        pages = []
        for name in names:
            page = self._pages.get(name)
            if page is None:
                break
            self._named[page].num_holders += 1
            self._idle.pop(page, None)
            pages.append(page)
        return pages

    def _take_one(self) -> int:
        if self._free:
            return self._free.pop()
        if self._num_touched < self._num_pages:
            self._num_touched += 1
            return self._num_touched - 1
        page = next(iter(self._idle))
        del self._idle[page]
        del self._pages[self._named.pop(page).name]
        return page


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

    def share(self, names: Sequence[PageName], pool: PagePool) -> None:
        """Name the first pages. Raises ValueError when the prefix does not fill them."""
        if len(names) > self.num_prefix // PAGE_ROWS:
            raise ValueError(f"{len(names)} pages shared of a prefix of {self.num_prefix} rows")
        pool.share(self.pages[: len(names)], names)

    def adopt(self, names: Sequence[PageName], pool: PagePool) -> int:
        """Go on with known pages; returns the new prefix rows."""
        if self.num_tail or self.num_prefix % PAGE_ROWS:
            return 0
        pool.give_back(self.shrink())  # pages taken for a forward that then failed
        pages = pool.adopt(names[len(self.pages) :])
        self.extend(pages)
        self.num_prefix += len(pages) * PAGE_ROWS
        return len(pages) * PAGE_ROWS

    def extend(self, pages: Sequence[int]) -> None:
        if pages:
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
