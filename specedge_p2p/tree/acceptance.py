"""Which guesses the target agrees with."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accepted:
    """The longest path below the root that agrees with the target's choices.

    Args:
        path: rows of the accepted vertices, from the root's child down.
        bonus_token: the target's own choice after the last of them.
    """

    path: tuple[int, ...]
    bonus_token: int


def accept(
    parents: Sequence[int],
    token_ids: Sequence[int],
    choices: Sequence[int],
) -> Accepted:
    """Judge a tree.

    Args:
        parents: row of the parent, below the row's own; row 0 is the root (-1).
        token_ids: of each row.
        choices: the target's next token after each row.
    """
    at = 0
    path = []
    rows = zip(parents, token_ids, strict=True)
    for row, (parent, token_id) in enumerate(rows):  # parents first, so one pass finds the path
        if parent == at and token_id == choices[at]:
            path.append(row)
            at = row
    return Accepted(tuple(path), choices[at])
