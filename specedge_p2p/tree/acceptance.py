"""Which guesses the target agrees with."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
    parents: npt.NDArray[np.int32],
    token_ids: npt.NDArray[np.int32],
    choices: npt.NDArray[np.int32],
) -> Accepted:
    """Judge a tree.

    Args:
        parents: int32 [R], row of the parent, below the row's own; row 0 is the root (-1).
        token_ids: int32 [R].
        choices: int32 [R], the target's next token after each row.
    """
    chosen = choices.tolist()
    at = 0
    path = []
    rows = zip(parents.tolist(), token_ids.tolist(), strict=True)
    for row, (parent, token_id) in enumerate(rows):  # parents first, so one pass finds the path
        if parent == at and token_id == chosen[at]:
            path.append(row)
            at = row
    return Accepted(tuple(path), chosen[at])
