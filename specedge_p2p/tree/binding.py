"""Which vertices become rows of the next step: bound to the root when the step starts.

Best first from the root down, so that only vertices next to chosen ones are ever looked at. The
probability of a row never exceeds its parent's, whatever a node claims, so the rows are
prefix-closed.

A step waits for this, so it looks at as few vertices as it can: a tree ranks the children of a
vertex as they arrive, and below a row each tree offers one child at a time, the next one when the
last is chosen. A child that several trees have is offered by the one that is believed.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from specedge_p2p.tree.merging import (
    Held,
    MergedTree,
    Offer,
    believed,
    below,
    from_nodes,
    held_below,
    mass_below,
    open_below,
    put_in_order,
    ranks,
)
from specedge_p2p.tree.ngram import NgramGuess
from specedge_p2p.tree.received_tree import ReceivedTree

_NEVER = 1 << 62
"""Arrival of vertices that no node sent: they lose every tie."""

_NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class SourceTree:
    """A node's tree in a session, or the engine's own.

    Args:
        source: number of the node's assignment, above 0; 0 for the engine's own tree.
        tree: brings rows only while it `is_full`.
        factor: what its path probabilities are multiplied with, once per path.
        draft: number of its draft model.
        quality: how far that draft model is believed, the largest that any of its trees says.
        is_own: the engine's own tree, which earns no credit.
    """

    source: int
    tree: ReceivedTree
    factor: float = 1.0
    draft: int = 0
    quality: float = 0.0
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class BindLimits:
    """What bounds the rows of one session in one step.

    Args:
        row_price: probability that a row must reach.
        max_rows: most rows below the root.
        max_depth: no row lies more levels below the root.
    """

    row_price: float
    max_rows: int
    max_depth: int


@dataclass(frozen=True, slots=True)
class BoundRows:
    """Rows of one session, parents first; row 0 is the root.

    Columns of R entries, as lists: a session has a dozen rows, and for so few an array costs more
    than it saves.

    Args:
        token_ids, parents, depths: parents are rows, the root's is -1.
        probs: estimated probability that the row is on the accepted path.
        sources: the node whose vertex arrived first, 0 for none.
        seconds: another node that has it, 0 for none.
        is_ngram: the n-gram guess has it.
        covered: sum of the probabilities of all known children, those that are no rows too, at
            most the row's own; the row's own where nothing may lie below it.
        is_own: the engine's own tree has it.
    """

    token_ids: list[int]
    parents: list[int]
    depths: list[int]
    probs: list[float]
    sources: list[int]
    seconds: list[int]
    is_ngram: list[bool]
    covered: list[float]
    is_own: list[bool]

    def __len__(self) -> int:
        return len(self.token_ids)

    def uncovered(self) -> list[float]:
        """Probability of each row that no known child has."""
        return [prob - covered for prob, covered in zip(self.probs, self.covered, strict=True)]


class _Row:
    """A chosen row while children of it may be chosen."""

    __slots__ = ("child_depth", "guess", "number", "offers", "prob")

    def __init__(
        self, number: int, child_depth: int, prob: float, offers: list[Offer], guess: int
    ) -> None:
        self.number = number
        self.child_depth = child_depth
        self.prob = prob
        self.offers = offers
        self.guess = guess


_Entry = tuple[float, int, int, int, int, int, _Row, Offer | None, Held]
"""What orders a candidate - (-probability, depth, arrival, index, token, row) - then its row, who
offers it (None: the n-gram) and all that have it."""


class _Binder:
    def __init__(self, ngram: NgramGuess, ngram_hit_rate: float, limits: BindLimits) -> None:
        self.guesses = ngram.token_ids
        self.hit_rate = ngram_hit_rate
        self.price = limits.row_price
        self.max_depth = limits.max_depth
        self.heap: list[_Entry] = []
        self.num_rows = 1
        self.numbers: list[int] = []
        """Per row token, parent, depth, source, second."""
        self.chances: list[float] = []
        """Per row probability, covered."""
        self.marks: list[bool] = []
        """Per row is_ngram, is_own."""

    def bind(self, root_token: int, sources: Sequence[SourceTree], max_rows: int) -> BoundRows:
        self.numbers += (root_token, -1, 0, 0, 0)
        self.marks += (False, False)
        self.chances += (1.0, self._open(0, 1.0, _roots(sources), bool(self.guesses)))
        heap = self.heap
        while heap and self.num_rows <= max_rows:
            self._choose(heapq.heappop(heap))
        return self._columns()

    def _choose(self, entry: _Entry) -> None:
        """Make a candidate the next row."""
        minus_prob, depth, _, _, token_id, parent, row, offer, held = entry
        if offer is not None:
            self._push_next(row, offer)
        self.num_rows += 1
        nodes = from_nodes(held)
        source = nodes[0][0].tree.source if nodes else 0
        second = nodes[1][0].tree.source if len(nodes) > 1 else 0
        self.numbers += (token_id, parent, depth, source, second)
        is_ngram = token_id == row.guess
        self.marks += (is_ngram, len(nodes) < len(held))
        covered = self._open(depth, -minus_prob, below(held), is_ngram)
        self.chances += (-minus_prob, covered)

    def _open(self, depth: int, prob: float, offers: list[Offer], is_ngram: bool) -> float:
        """Offer the children of the last row; how much of it they cover."""
        if depth >= self.max_depth:
            return prob
        guess = self.guesses[depth] if is_ngram and depth < len(self.guesses) else _NO_TOKEN
        if not offers and guess == _NO_TOKEN:
            return 0.0
        row = _Row(self.num_rows - 1, depth + 1, prob, offers, guess)
        covered = mass_below(offers)
        if guess != _NO_TOKEN:
            covered += self._push_guess(row)
        for offer in offers:
            self._push_next(row, offer)
        return covered if covered < prob else prob

    def _push_next(self, row: _Row, offer: Offer) -> None:
        """Let a tree offer its next child, and those that are no less probable."""
        ranked, at, most = offer.vertex.ranked, offer.num_offered, row.prob
        is_shared = len(row.offers) > 1
        while at < len(ranked):
            child = ranked[at]
            at += 1
            claim = offer.share * (offer.factor * exp(child.total - offer.base))
            prob = claim if claim < most else most
            if prob < self.price:
                at = len(ranked)  # those after it cost too much as well
                break
            token_id = child.token_id
            if token_id == row.guess:
                continue  # it is offered with the guess
            held = held_below(row.offers, token_id) if is_shared else [(offer, child)]
            if is_shared and believed(held) is not offer:
                continue  # another tree offers it
            order = _first_arrival(held)
            entry = (-prob, row.child_depth, *order, token_id, row.number, row, offer, held)
            heapq.heappush(self.heap, entry)
            if prob < most and (at == len(ranked) or ranked[at].total < child.total):
                break
        offer.num_offered = at

    def _push_guess(self, row: _Row) -> float:
        """Offer what the n-gram guesses; how much more of the row it covers than the trees do."""
        depth, token_id = row.child_depth, row.guess
        held = held_below(row.offers, token_id)
        said = 0.0
        if held:
            offer = believed(held)
            said = min(1.0, offer.share * offer.claim(offer.vertex.children[token_id]))
        chance = 1.0 - (1.0 - said) * (1.0 - self.hit_rate**depth)
        prob = min(chance, row.prob)
        if prob >= self.price:
            order = _first_arrival(held)
            entry = (-prob, depth, *order, token_id, row.number, row, None, held)
            heapq.heappush(self.heap, entry)
        return chance - said

    def _columns(self) -> BoundRows:
        numbers, chances, marks = self.numbers, self.chances, self.marks
        return BoundRows(
            token_ids=numbers[0::5],
            parents=numbers[1::5],
            depths=numbers[2::5],
            probs=chances[0::2],
            sources=numbers[3::5],
            seconds=numbers[4::5],
            is_ngram=marks[0::2],
            covered=chances[1::2],
            is_own=marks[1::2],
        )


def _roots(sources: Sequence[SourceTree]) -> list[Offer]:
    """What the full trees have below the root."""
    full = [source for source in sources if source.tree.is_full]
    offers = []
    for at, source in enumerate(full):
        root = source.tree.tree.root_vertex
        merged = MergedTree(at, source.source, source.factor, source.is_own)
        offers.append(open_below(merged, root, root.total))
    if len(full) > 1:
        places = ranks([source.draft for source in full], [source.quality for source in full])
        for offer, rank in zip(offers, places, strict=True):
            offer.tree.rank = rank
    offers = [offer for offer in offers if offer.vertex.children]
    if len(offers) > 1:
        put_in_order(offers)
    return offers


def _first_arrival(held: Held) -> tuple[int, int]:
    """(arrival, index) of the node's vertex that arrived first."""
    nodes = from_nodes(held)
    return (nodes[0][1].arrival, nodes[0][1].index) if nodes else (_NEVER, _NEVER)


def bind(
    root_token: int,
    sources: Sequence[SourceTree],
    ngram: NgramGuess,
    ngram_hit_rate: float,
    limits: BindLimits,
) -> BoundRows:
    """Choose one session's rows: by probability, then depth, then arrival, index and token.

    Args:
        root_token: the last committed token.
        sources: the trees of nodes and of the engine.
        ngram: a chain below the root.
        ngram_hit_rate: probability of its first token; each further one has the same again.
        limits: see BindLimits.
    """
    return _Binder(ngram, ngram_hit_rate, limits).bind(root_token, sources, limits.max_rows)
