"""The pool of pages and the names of pages against plain bookkeeping."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.lm.pages import PAGE_ROWS, CachedSequence, PagePool
from specedge_p2p.lm.ports import OutOfCache, SamplingParams
from specedge_p2p.lm.prefix import PageName, PrefixNames

# --- names ---------------------------------------------------------------------------------------

TOKENS = st.lists(st.integers(0, 2**20), max_size=40)


@given(salts=st.tuples(st.text(max_size=3), st.text(max_size=3)), one=TOKENS, other=TOKENS)
def test_equal_names_are_equal_beginnings_under_one_salt(
    salts: tuple[str, str], one: list[int], other: list[int]
) -> None:
    named = PrefixNames(salts[0], 4).of(one, len(one))
    others = PrefixNames(salts[1], 4).of(other, len(other))
    assert len(named) == len(one) // 4
    for i, (name, other_name) in enumerate(zip(named, others, strict=False)):
        end = 4 * (i + 1)
        assert (name == other_name) == (salts[0] == salts[1] and one[:end] == other[:end])
    assert len({*named, *others}) >= max(len(named), len(others))


@given(token_ids=TOKENS, ends=st.lists(st.integers(0, 40), max_size=6))
def test_a_text_may_be_named_while_it_grows(token_ids: list[int], ends: list[int]) -> None:
    names = PrefixNames("key", 3)
    for end in ends:
        known = token_ids[: max(end, 1)]
        num_rows = min(end, len(known))
        assert names.of(token_ids, num_rows) == PrefixNames("key", 3).of(known, num_rows)


# --- the pool ------------------------------------------------------------------------------------


class Books:
    """What a pool must do, kept as lists: who holds what, and who idles since when."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.held: list[list[int]] = []
        self.names: dict[PageName, int] = {}
        self.idle: list[int] = []

    @property
    def in_use(self) -> set[int]:
        return {page for pages in self.held for page in pages}

    def settle(self, left: Sequence[int] = ()) -> None:
        """Pages that somebody has left idle if they are named, the last page of a prefix first."""
        in_use = self.in_use
        self.idle = [page for page in self.idle if page not in in_use]
        named = set(self.names.values())
        self.idle += [p for p in reversed(left) if p in named and p not in in_use]

    def take(self, pages: list[int]) -> None:
        assert len(set(pages)) == len(pages)
        assert not self.in_use & set(pages)
        num_idle_taken = len(set(pages) & set(self.idle))
        assert set(pages) & set(self.idle) == set(self.idle[:num_idle_taken])  # the oldest
        if num_idle_taken:  # only once nothing else was left
            assert self.num_pages - len(self.in_use) - len(self.idle) == len(pages) - num_idle_taken
        self.names = {name: page for name, page in self.names.items() if page not in pages}
        self.held.append(pages)
        self.settle()


@given(data=st.data(), num_pages=st.integers(1, 8))
def test_law7_bounded_pages_have_holders_or_idle_or_are_free(
    data: st.DataObject, num_pages: int
) -> None:
    pool, books = PagePool(num_pages), Books(num_pages)
    chains = [PrefixNames(str(i), 1).of(range(6), 6) for i in range(3)]
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["take", "give", "share", "adopt"])):
            case "take":
                count = data.draw(st.integers(0, num_pages + 1))
                if count > num_pages - len(books.in_use):
                    with pytest.raises(OutOfCache):
                        pool.take(count)
                else:
                    books.take(pool.take(count))
            case "give" if books.held:
                pages = books.held.pop(data.draw(st.integers(0, len(books.held) - 1)))
                pool.give_back(pages)
                books.settle(pages)
            case "share" if books.held:
                pages = data.draw(st.sampled_from(books.held))
                names = data.draw(st.sampled_from(chains))[: len(pages)]
                pool.share(pages[: len(names)], names)
                for page, name in zip(pages, names, strict=False):
                    if page not in books.names.values():
                        books.names.setdefault(name, page)
            case "adopt":
                names = data.draw(st.sampled_from(chains))
                known = [books.names.get(name) for name in names]
                known = known[: known.index(None)] if None in known else known
                pages = pool.adopt(names)
                assert pages == known
                books.held.append(pages)
                books.settle()
        assert pool.num_free == num_pages - len(books.in_use)


def test_the_page_that_idles_longest_is_taken_first_and_of_a_prefix_its_end() -> None:
    pool = PagePool(4)
    first, second = pool.take(2), pool.take(2)
    names = [PrefixNames(salt, 1).of([7, 8], 2) for salt in ("a", "b")]
    pool.share(first, names[0])
    pool.share(second, names[1])
    pool.give_back(second)
    pool.give_back(first)
    assert pool.take(1) == second[1:]
    assert pool.adopt(names[1]) == second[:1]
    assert pool.take(1) == first[1:]
    assert pool.adopt(names[0]) == first[:1]
    assert pool.num_free == 0


# --- a sequence ----------------------------------------------------------------------------------


def test_a_sequence_shares_full_pages_and_adopts_them_at_a_page_border_only() -> None:
    pool = PagePool(6)
    names = PrefixNames("", PAGE_ROWS).of(range(64), 64)
    owner, other = (CachedSequence(SamplingParams(), bytes(16)) for _ in range(2))
    owner.extend(pool.take(3))
    owner.num_prefix = 2 * PAGE_ROWS + 1
    with pytest.raises(ValueError, match="3 pages shared"):
        owner.share(names[:3], pool)
    owner.share(names[:2], pool)
    assert other.adopt(names[:1], pool) == PAGE_ROWS
    other.num_tail = 1
    assert other.adopt(names, pool) == 0
    other.num_tail, other.num_prefix = 0, PAGE_ROWS - 1
    assert other.adopt(names, pool) == 0
    other.num_prefix = PAGE_ROWS
    other.extend(pool.take(1))  # for a forward that failed
    assert other.adopt(names, pool) == PAGE_ROWS
    assert other.pages == owner.pages[:2]
    assert other.physical.tolist() == owner.physical[: 2 * PAGE_ROWS].tolist()
    assert pool.num_free == 3
    pool.give_back(owner.pages)
    assert pool.num_free == 4
