"""The free guess: what followed the last time the text read like this."""

from collections.abc import Sequence
from dataclasses import dataclass

ORDERS = (4, 3, 2)


@dataclass(frozen=True, slots=True)
class NgramGuess:
    """A chain of tokens after the last committed one.

    Args:
        order: how many of the last tokens were found again, 0 for no guess.
        token_ids: what followed them.
    """

    order: int = 0
    token_ids: tuple[int, ...] = ()


class NgramIndex:
    """All n-grams of one session's committed tokens, kept up to date as they grow."""

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self._token_ids: list[int] = []
        self._next_positions: dict[tuple[int, ...], int] = {}
        self.commit(token_ids)

    def commit(self, token_ids: Sequence[int]) -> None:
        """Append committed tokens."""
        known = self._token_ids
        for token_id in token_ids:
            end = len(known)
            for order in ORDERS:  # an n-gram enters when something follows it
                if order <= end:
                    self._next_positions[tuple(known[end - order :])] = end
            known.append(token_id)

    def guess(self, max_tokens: int = 8) -> NgramGuess:
        """Guess what comes next; the longest order wins, then the latest earlier occurrence.

        A guess that reaches the end of the text goes on with itself, so a period repeats.
        """
        known = self._token_ids
        for order in ORDERS:
            if order > len(known):
                continue
            start = self._next_positions.get(tuple(known[-order:]))
            if start is not None:
                found = known[start : start + max_tokens]
                period = len(known) - start
                while len(found) < max_tokens:
                    found.append(found[len(found) - period])
                return NgramGuess(order, tuple(found))
        return NgramGuess()
