from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.ngram import ORDERS, NgramGuess, NgramIndex


def slow_guess(known: list[int], max_tokens: int) -> NgramGuess:
    for order in ORDERS:
        for start in range(len(known) - 1, order - 1, -1):  # latest first, something follows
            if len(known) >= order and known[start - order : start] == known[-order:]:
                text = list(known)
                for _ in range(max_tokens):
                    text.append(text[start + len(text) - len(known)])
                return NgramGuess(order, tuple(text[len(known) :]))
    return NgramGuess()


def test_the_longest_order_wins_over_a_later_shorter_one() -> None:
    index = NgramIndex([1, 2, 3, 4, 5, 9, 3, 4, 6, 1, 2, 3, 4])
    assert index.guess(3) == NgramGuess(4, (5, 9, 3))


def test_the_latest_occurrence_wins() -> None:
    assert NgramIndex([1, 2, 7, 1, 2, 8, 1, 2]).guess(1) == NgramGuess(2, (8,))


def test_nothing_is_guessed_from_new_text() -> None:
    assert NgramIndex().guess() == NgramGuess(0, ())
    assert NgramIndex([1]).guess() == NgramGuess()
    assert NgramIndex([1, 2, 3, 4, 5]).guess() == NgramGuess()


def test_a_period_goes_on_beyond_the_end() -> None:
    assert NgramIndex([1, 2, 3, 1, 2]).guess(7) == NgramGuess(2, (3, 1, 2, 3, 1, 2, 3))
    assert NgramIndex([4, 4, 4]).guess(3) == NgramGuess(2, (4, 4, 4))


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=10), st.integers(0, 9))
def test_guess_equals_brute_force(commits: list[list[int]], max_tokens: int) -> None:
    index, known = NgramIndex(), []
    for tokens in commits:
        index.commit(tokens)
        known.extend(tokens)
        assert index.guess(max_tokens) == slow_guess(known, max_tokens)
