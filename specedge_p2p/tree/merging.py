"""How trees that share a path are taken for one.

Those of one draft model count by the larger scaled probability of the way from the root. Where
several draft models expanded a vertex, the best of them says how probable its children are given
the vertex; a child that only a lesser one proposed counts LESSER_SHARE of what that one says. So a
factor scales a path once, however often the draft that is believed changes along it.

Children of one vertex that claim more than certainty together share it by their claims. A node that
is sure of all its guesses would otherwise get a row for each of them, however small its factor.
"""

import math
from collections.abc import Sequence

from specedge_p2p.tree.draft_tree import Vertex

LESSER_SHARE = 0.4
"""What a guess counts that a better draft model, asked at the same vertex, did not make."""


class MergedTree:
    """A tree that takes part. `rank` 0 is of the most believed draft model; `at` breaks ties."""

    __slots__ = ("at", "factor", "is_own", "rank", "source")

    def __init__(self, at: int, source: int, factor: float, is_own: bool) -> None:
        self.at = at
        self.source = source
        self.factor = factor
        self.is_own = is_own
        self.rank = 0


class Offer:
    """What one tree has below a row, the most probable first.

    By this tree alone the way to a vertex has probability factor * exp(vertex.total - base); of
    that `share` counts.
    """

    __slots__ = ("base", "factor", "num_offered", "share", "tree", "vertex")

    def __init__(self, tree: MergedTree, vertex: Vertex, base: float) -> None:
        self.tree = tree
        self.vertex = vertex
        self.base = base
        self.factor = tree.factor
        self.share = 1.0
        self.num_offered = 0

    def claim(self, child: Vertex) -> float:
        """Probability of the way to a vertex, by this tree alone."""
        return self.factor * math.exp(child.total - self.base)


Held = list[tuple[Offer, Vertex]]
"""One path in all trees that have it."""


def ranks(drafts: Sequence[int], qualities: Sequence[float]) -> list[int]:
    """Place of each tree's draft model among those here; the lower number of equally good ones."""
    best: dict[int, float] = {}
    for draft, quality in zip(drafts, qualities, strict=True):
        best[draft] = max(best.get(draft, -math.inf), quality)
    order = sorted(best, key=lambda draft: (-best[draft], draft))
    return [order.index(draft) for draft in drafts]


def put_in_order(offers: list[Offer]) -> None:
    """The best draft model that expanded the row first; what the others add counts less."""
    offers.sort(key=_place)
    leading = offers[0].tree.rank
    for offer in offers:
        if offer.tree.rank > leading:
            offer.share = LESSER_SHARE


def held_below(offers: Sequence[Offer], token_id: int) -> Held:
    """A child of a row in all trees that have it, in the order of the offers."""
    held = []
    for offer in offers:
        child = offer.vertex.children.get(token_id)
        if child is not None:
            held.append((offer, child))
    return held


def believed(held: Held) -> Offer:
    """Whose probability counts: of the best draft model's trees the one that says most."""
    best, child = held[0]
    for offer, other in held[1:]:
        if offer.tree.rank != best.tree.rank:
            break
        if offer.claim(other) > best.claim(child):
            best, child = offer, other
    return best


def from_nodes(held: Held) -> Held:
    """What nodes have of it, first arrival first."""
    if len(held) == 1 and not held[0][0].tree.is_own:
        return held
    nodes = [(offer, child) for offer, child in held if not offer.tree.is_own]
    if len(nodes) > 1:
        nodes.sort(key=_arrival)
    return nodes


def open_below(tree: MergedTree, vertex: Vertex, base: float) -> Offer:
    """What a tree offers below a vertex, which by itself alone has factor * exp(total - base)."""
    return Offer(tree, vertex, base + math.log(vertex.mass) if vertex.mass > 1.0 else base)


def below(held: Held) -> list[Offer]:
    """Offers of what lies below a merged vertex, scaled to how probable that is taken to be."""
    if not held:
        return []
    if len(held) == 1 and held[0][0].share == 1.0:
        offer, child = held[0]
        return [open_below(offer.tree, child, offer.base)] if child.children else []
    said: dict[int, float] = {}
    for offer, child in held:
        rank = offer.tree.rank
        said[rank] = max(said.get(rank, 0.0), offer.claim(child))
    first = held[0][0]
    counts = first.share * said[first.tree.rank]
    found = []
    for offer, child in held:
        if child.children:
            said_here = said[offer.tree.rank]
            shift = 0.0 if said_here == counts else _log_ratio(said_here, counts)
            found.append(open_below(offer.tree, child, offer.base + shift))
    if len(found) > 1:
        put_in_order(found)
    return found


def mass_below(offers: Sequence[Offer]) -> float:
    """Sum of the probabilities of all children of a row, each counted once."""
    if not offers:
        return 0.0
    vertex = offers[0].vertex
    total = offers[0].claim(vertex) * vertex.mass
    for at in range(1, len(offers)):
        offer = offers[at]
        for child in offer.vertex.ranked:
            rivals = held_below(offers[:at], child.token_id)
            if not rivals:
                total += offer.share * offer.claim(child)
            elif rivals[0][0].tree.rank == offer.tree.rank:
                most = max(rival.claim(other) for rival, other in rivals)
                total += offer.share * max(0.0, offer.claim(child) - most)
    return total


def _place(offer: Offer) -> tuple[int, int]:
    return offer.tree.rank, offer.tree.at


def _arrival(pair: tuple[Offer, Vertex]) -> tuple[int, int]:
    return pair[1].arrival, pair[0].tree.at


def _log_ratio(said: float, counts: float) -> float:
    """What to add to a base so that `said` becomes `counts`; nothing that vanished comes back."""
    if said <= 0.0 or counts <= 0.0:
        return math.inf
    return math.log(said) - math.log(counts)
