"""Names of full cache pages, so that equal beginnings are computed once.

A page's name is a hash of a salt, of the name of the page before it and of its own tokens: pages
with one name hold the rows of the same tokens after the same tokens (as the hashes of blocks in
vLLM do, arXiv 2309.06180). Texts with different salts never have a name in common, so nobody can
tell from the time of an answer what others have asked.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NewType

import numpy as np

PageName = NewType("PageName", bytes)
_NAME_BYTES = 32


class PrefixNames:
    """The names of one growing text.

    Args:
        salt: whose text it is.
        page_rows: tokens of a page.
    """

    def __init__(self, salt: str, page_rows: int) -> None:
        self._first = PageName(_digest(salt.encode("utf-8", "surrogatepass")))
        self._page_rows = page_rows
        self._names: list[PageName] = []

    def of(self, token_ids: Sequence[int], num_rows: int) -> list[PageName]:
        """Names of the pages that the first `num_rows` tokens fill, the first page first.

        Each call must give the tokens of the calls before, to which others may have been added.
        """
        num_pages = num_rows // self._page_rows
        while len(self._names) < num_pages:
            start = len(self._names) * self._page_rows
            page = np.asarray(token_ids[start : start + self._page_rows], "<u4").tobytes()
            before = self._names[-1] if self._names else self._first
            self._names.append(PageName(_digest(before + page)))
        return self._names[:num_pages]


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_NAME_BYTES, person=b"specedge page").digest()
