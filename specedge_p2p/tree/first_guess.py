"""How good a tree's first level was: what its node, or its draft model, is believed by."""

from dataclasses import dataclass

from specedge_p2p.tree.binding import SourceTree


@dataclass(frozen=True, slots=True)
class Seen:
    """How a tree's first level fared against the target's choice.

    Args:
        predicted: sum of the unscaled probabilities of the root's children, at most 1.
        is_hit: one of them was the choice.
    """

    predicted: float
    is_hit: bool


def first_guess(source: SourceTree, chosen: int) -> Seen | None:
    """Score a tree against the target's choice after the root, before that is committed.

    None when the tree is not full or has nothing at its root.
    """
    if not source.tree.is_full:
        return None
    root = source.tree.tree.root_vertex
    return Seen(min(1.0, root.mass), chosen in root.children) if root.children else None
