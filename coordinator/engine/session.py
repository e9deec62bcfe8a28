"""One session inside the engine: its committed tokens, run-ahead included, and its nodes' trees."""

from collections.abc import Sequence

from coordinator.engine.messages import (
    NGRAM_ORDERS,
    AddVertices,
    OpenSession,
    SourceSeen,
    StepEntry,
    VerificationBatch,
)
from coordinator.engine.own_tree import OwnTree
from coordinator.engine.packing import Ending, Outcome
from coordinator.engine.settings import EngineLimits
from specedge_p2p.lm.ports import MAX_TAIL_SLOTS, CacheInfo, ModelInfo
from specedge_p2p.lm.prefix import PageName, PrefixNames
from specedge_p2p.tree.binding import BindLimits, BoundRows, SourceTree, bind
from specedge_p2p.tree.draft_tree import TreeError
from specedge_p2p.tree.first_guess import first_guess
from specedge_p2p.tree.ngram import NgramGuess, NgramIndex
from specedge_p2p.tree.received_tree import ReceivedTree
from specedge_p2p.wire.columns import unpack_candidates
from specedge_p2p.wire.errors import ProtocolError

MAX_TREE_INDEX = 65_535
_SHARE_NEW = 0.1
"""Weight of the latest round in what is known of the nodes' share."""


class EngineSession:
    """Everything the engine knows of a session but its cache rows' contents.

    `num_rows` counts the rows in the cache: fewer than the committed tokens while the session is
    being prefilled, afterwards all of them but the root.
    """

    def __init__(
        self, opened: OpenSession, age: int, ending: Ending, info: ModelInfo, cache: CacheInfo
    ) -> None:
        self.number = opened.session
        self.age = age
        """Rises with every session opened: the youngest has the highest."""
        self.ending = ending
        self.sampling = opened.sampling
        self.noise_key = opened.noise_key
        self._vocab_size = info.vocab_size
        self.token_ids = list(opened.token_ids)
        self.num_rows = 0
        self.num_shared_rows = 0
        """Of them those that were offered to others."""
        self.is_prefilled = False
        self.finish = ""
        self.node_share = 0.0
        """Of the last tokens those that nodes had guessed."""
        self.last_step = 0
        """The last step that it was in."""
        self._ngram = NgramIndex(opened.token_ids)
        self._names: PrefixNames | None = None
        if cache.can_share:
            self._names = PrefixNames(opened.prefix_salt, cache.page_rows)
        self._trees: dict[int, ReceivedTree] = {}
        self.own: OwnTree | None = None
        """What the engine's own draft model knows; grown and given by `own_draft.py`."""

    @property
    def num_missing_rows(self) -> int:
        """Tokens that prefill still has to write."""
        return 0 if self.is_prefilled else len(self.token_ids) - self.num_rows

    def page_names(self, num_rows: int) -> list[PageName]:
        """Names of the pages that the first `num_rows` tokens fill; none if nothing is shared."""
        return [] if self._names is None else self._names.of(self.token_ids, num_rows)

    def forget_rows(self) -> None:
        """Its rows were dropped: it is to be prefilled anew from its committed tokens."""
        self.num_rows = self.num_shared_rows = 0
        self.is_prefilled = False

    @property
    def max_depth(self) -> int:
        """Most levels below the root.

        A row at the last free position would choose a token that cannot stand any more.
        """
        return self.ending.max_position - len(self.token_ids) - 1

    @property
    def num_sources(self) -> int:
        return len(self._trees)

    def num_live(self, source: int) -> int:
        return self._trees[source].num_live if source in self._trees else 0

    # --- trees -----------------------------------------------------------------------------------

    def add_vertices(self, message: AddVertices, arrival: int, limits: EngineLimits) -> None:
        """Extend or begin a source's tree; one that breaks the rules is dropped with its source.

        The coordinator has checked what it passes on, so a broken tree is a bug of ours or a race;
        it may cost the guesses of one node but never the engine.
        """
        tree = self._tree_for(message, limits)
        if tree is None:
            return
        try:
            columns = unpack_candidates(message.token_ids, message.parents, message.log_probs)
            if message.first_index + len(columns) > MAX_TREE_INDEX + 1:
                raise TreeError("the tree has too many vertices")
            if (columns.token_ids >= self._vocab_size).any():
                raise TreeError("a token lies outside the vocabulary")
            tree.extend(message.first_index, columns, arrival)
        except (TreeError, ProtocolError):
            self.drop_source(message.source)
            return
        if tree.num_live > limits.max_live_vertices:
            self.drop_source(message.source)

    def drop_source(self, source: int) -> None:
        self._trees.pop(source, None)

    def _tree_for(self, message: AddVertices, limits: EngineLimits) -> ReceivedTree | None:
        tree = self._trees.get(message.source)
        if tree is not None and tree.tree_no == message.tree_no:
            return tree
        is_stale = tree is not None and message.tree_no < tree.tree_no
        is_late = message.first_index != 1  # the tree it extends is gone or was never seen
        is_beyond = not 1 <= message.base_position <= len(self.token_ids)
        is_full = tree is None and len(self._trees) >= limits.max_sources
        if is_stale or is_late or is_beyond or is_full:
            return None
        base = message.base_position
        tree = ReceivedTree(
            message.tree_no, base, self.token_ids[base:], root_token=self.token_ids[base - 1]
        )
        self._trees[message.source] = tree
        return tree

    # --- steps -----------------------------------------------------------------------------------

    def guess(self) -> NgramGuess:
        return self._ngram.guess()

    def bind(self, entry: StepEntry, batch: VerificationBatch, guess: NgramGuess) -> BoundRows:
        """The root and what is worth verifying below it, as of now."""
        sources = [
            SourceTree(named.source, tree, named.factor, named.draft, named.quality)
            for named in {named.source: named for named in entry.sources}.values()
            if (tree := self._trees.get(named.source)) is not None
        ]
        terms = batch.levels
        own = None if terms is None else self.own
        if terms is not None and own is not None:
            sources.append(own.source(terms))
        bound = bind(
            root_token=self.token_ids[-1],
            sources=sources,
            ngram=guess,
            ngram_hit_rate=_hit_rate(batch.ngram_hit_rates, guess.order),
            limits=BindLimits(
                row_price=batch.row_price,
                max_rows=max(0, min(entry.max_rows, MAX_TAIL_SLOTS - 1)),
                max_depth=self.max_depth,
            ),
        )
        return bound if own is None else own.guesses(bound)

    def seen(self, chosen: int) -> list[SourceSeen]:
        """How all trees fared that had something to say about the next token, before its commit.

        Args:
            chosen: that token.
        """
        found = []
        for source, tree in self._trees.items():
            if seen := first_guess(SourceTree(source, tree), chosen):
                found.append(SourceSeen(source, seen.predicted, seen.is_hit))
        if self.own is not None and (own := self.own.first_guess(chosen)):
            found.append(own)
        return found

    def commit(self, outcome: Outcome) -> None:
        """Take what a forward decided; a finished session forgets its trees."""
        new = list(outcome.token_ids)
        self.token_ids += new
        self.num_rows = len(self.token_ids) - 1
        self.is_prefilled = True
        self.finish = outcome.finish
        if self.finish:
            self._trees.clear()
            self.own = None
            return
        num_guessed = sum(source.source > 0 for source in outcome.sources)
        self.node_share += _SHARE_NEW * (num_guessed / len(new) - self.node_share)
        self._ngram.commit(new)
        if self.own is not None:
            self.own.commit(new)
        for tree in self._trees.values():
            tree.commit(new)


def _hit_rate(rates: Sequence[float], order: int) -> float:
    """The hit rate of an n-gram order; one that nobody gave is 0, which brings no rows."""
    if order not in NGRAM_ORDERS:
        return 0.0
    place = NGRAM_ORDERS.index(order)
    return rates[place] if place < len(rates) else 0.0
