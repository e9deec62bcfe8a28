"""Whether the engine drafts a level itself, and below which rows."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from specedge_p2p.tree.binding import BoundRows

USEFUL_SHARE = 0.75
"""How much of the mass that nobody covered a level's children bring, in recorded runs."""
_NODES_DISCOUNT = 0.2
_NODES_FULLY = 0.25
"""Share of a session's tokens from which on its nodes' lead counts in full."""


@dataclass(frozen=True, slots=True)
class Expansions:
    """What the next level expands of one session.

    Args:
        rows: bound rows, the most uncovered mass first; row 0 is the root.
        mass: tokens that their children are expected to bring to the step.
    """

    rows: tuple[int, ...]
    mass: float


def useful_share(node_share: float) -> float:
    """What a level brings to a session of the mass that nobody covered.

    Less where nodes keep up: what the engine accepts beyond their trees costs them their lead, so
    a part of it is missing from the next step. In recorded runs with volunteers 15 ms away 0.55 to
    0.6 was best, without them 0.75.

    Args:
        node_share: of the session's last tokens those that nodes had guessed.
    """
    return USEFUL_SHARE - _NODES_DISCOUNT * min(1.0, node_share / _NODES_FULLY)


def expansions(
    bound: BoundRows, done: AbstractSet[int], width: int, share: float = USEFUL_SHARE
) -> Expansions:
    """The rows after which the target's choice is most often nowhere in the tree.

    Args:
        bound: the session's rows as they are now.
        done: rows that an earlier level of this step has expanded.
        width: most rows.
        share: see useful_share.
    """
    uncovered = bound.uncovered()
    open_rows = [row for row, mass in enumerate(uncovered) if mass > 0 and row not in done]
    open_rows.sort(key=lambda row: -uncovered[row])  # stable: of equal ones the earlier row
    chosen = tuple(open_rows[:width])
    return Expansions(chosen, share * sum(uncovered[row] for row in chosen))


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
