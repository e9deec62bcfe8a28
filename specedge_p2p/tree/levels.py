"""Whether the engine drafts a level itself, and below which rows."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from specedge_p2p.tree.binding import BoundRows

USEFUL_SHARE = 0.75
"""How much of the mass that nobody covered a level's children bring, in recorded runs."""


@dataclass(frozen=True, slots=True)
class Expansions:
    """What the next level expands of one session.

    Args:
        rows: bound rows, the most uncovered mass first; row 0 is the root.
        mass: tokens that their children are expected to bring to the step.
    """

    rows: tuple[int, ...]
    mass: float


def expansions(bound: BoundRows, done: AbstractSet[int], width: int) -> Expansions:
    """The rows after which the target's choice is most often nowhere in the tree.

    Args:
        bound: the session's rows as they are now.
        done: rows that an earlier level of this step has expanded.
        width: most rows.
    """
    uncovered = (bound.probs - bound.covered).tolist()
    open_rows = [row for row, mass in enumerate(uncovered) if mass > 0 and row not in done]
    open_rows.sort(key=lambda row: -uncovered[row])  # stable: of equal ones the earlier row
    chosen = tuple(open_rows[:width])
    return Expansions(chosen, USEFUL_SHARE * sum(uncovered[row] for row in chosen))


def pays(
    mass: float,
    num_rows: int,
    level_time_s: float,
    level_row_time_s: float,
    row_time_s: float,
    tokens_per_s: float,
) -> bool:
    """Whether a level brings more tokens than the engine makes in its time without it.

    Args:
        mass: expected tokens, summed over the sessions of the step.
        num_rows: rows that the level expands; each is taken to bring one row to verify.
        level_time_s: time of a level of one row.
        level_row_time_s: time of each further row of a level.
        row_time_s: time of each further row of the step that verifies.
        tokens_per_s: committed tokens per second of engine time.
    """
    if num_rows < 1:
        return False
    level_s = level_time_s + level_row_time_s * (num_rows - 1)
    return mass > tokens_per_s * (level_s + row_time_s * num_rows)
