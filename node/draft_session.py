"""One session at a node: its committed tokens, its growing tree, and what of both has rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from node.draft_cache import Compaction, DraftCache, Growth
from specedge_p2p.lm.ports import MAX_TAIL_SLOTS, Children, ModelInfo, Rows, SamplingParams
from specedge_p2p.noise import NoiseKey
from specedge_p2p.tree.growth import Gain, GrowingTree, GrowthSettings
from specedge_p2p.tree.lockstep import LockstepRounds, LockstepTerms
from specedge_p2p.wire.messages import GrowthWishes


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """A session to draft for. `max_position`: no token stands at or beyond it."""

    token_ids: Sequence[int]
    sampling: SamplingParams
    key: NoiseKey
    max_position: int
    vocab_size: int
    wishes: GrowthWishes = field(default_factory=GrowthWishes)


@dataclass(frozen=True, slots=True)
class Share:
    """One session's share of a level: missing committed tokens, or growth.

    `sum_probs` are the path probabilities of the vertices to expand, added up.
    """

    session: "DraftSession"
    rows: Rows
    growths: tuple[Growth, ...] = ()
    sum_probs: float = 0.0


class DraftSession:
    """Only `written` and `commit` change what the cache is believed to hold."""

    def __init__(
        self, number: int, request: DraftRequest, growth: GrowthSettings, model: ModelInfo
    ) -> None:
        wishes = request.wishes
        settings = replace(
            growth,
            min_prob=wishes.min_prob,
            look_ahead=wishes.look_ahead,
            max_unverified=wishes.max_unverified,
        )
        self.number = number
        self.tokens = list(request.token_ids)
        # A row stands inside the draft model's context; its children may stand at the first
        # position outside.
        self.limit = min(request.max_position, model.max_context + 1)
        self.tree = GrowingTree(len(self.tokens), self.tokens[-1], settings, self.limit)
        self.cache = DraftCache()
        self.beam_width = wishes.beam_width
        """As the coordinator wishes; 0 leaves it to the node."""
        self.is_paused = False
        """No cache for more rows until a verdict frees some."""
        self._model = model
        self._vocab_size = request.vocab_size  # of the target; the draft model's may differ
        self._largest_token = max(self.tokens)
        self._rounds = _rounds(wishes)
        self._num_verdicts = 0
        self._num_hits = 0

    @property
    def usefulness(self) -> float:
        return (1 + self._num_hits) / (2 + self._num_verdicts)

    @property
    def why_not(self) -> str:
        """Why the draft model cannot go on with the session, "" if it can."""
        if len(self.tokens) > self._model.max_context:
            return "the session outgrew the draft model's context"
        if self._largest_token >= self._model.vocab_size:
            return "the session has a token that the draft model does not know"
        return ""

    @property
    def is_prefilled(self) -> bool:
        return self.cache.num_prefix == len(self.tokens)

    @property
    def may_grow(self) -> bool:
        return self._rounds is None or self._rounds.may_grow

    # --- what the coordinator says ---------------------------------------------------------------

    def commit(self, token_ids: Sequence[int]) -> tuple[bool, Compaction | None]:
        """Apply a verdict: whether the tree had it all, and what to do to the model's cache."""
        root = self.tree.root
        is_hit = self.tree.commit(token_ids)
        if not token_ids:
            return is_hit, None
        self.tokens.extend(token_ids)
        self._largest_token = max(self._largest_token, *token_ids)
        self.is_paused = False
        self._num_verdicts += 1
        self._num_hits += is_hit
        if self._rounds is not None:
            self.tree.restart()  # every round is a tree of its own
            self._rounds.begin(self.tree.num_levels)
        return is_hit, self.cache.commit(root, token_ids, keep_subtree=is_hit)

    def restart(self) -> None:
        self.tree.restart()
        if self._rounds is not None:
            self._rounds.again()

    def resume(self, wishes: GrowthWishes) -> None:
        self.tree.resume()
        self._rounds = None
        self.tune(wishes)

    def tune(self, wishes: GrowthWishes) -> None:
        self.beam_width = wishes.beam_width
        self.tree.tune(wishes.min_prob, wishes.look_ahead, wishes.max_unverified)
        rounds = _rounds(wishes)
        if rounds is not None and self._rounds is not None:
            self._rounds.terms = rounds.terms
            return
        self._rounds = rounds
        if rounds is not None:
            self.tree.restart()
            rounds.begin(self.tree.num_levels)

    def gain(self, room: int) -> Gain | None:
        if self._rounds is not None:
            room = self._rounds.room(room)
        gain = self.tree.take_gain(room) if room > 0 else None
        if gain is not None and self._rounds is not None:
            self._rounds.proposed()
        return gain

    # --- levels ----------------------------------------------------------------------------------

    def plan_prefill(self, max_rows: int) -> Share | None:
        """The next committed tokens that have no rows, at most `max_rows`."""
        start = self.cache.num_prefix
        chunk = self.tokens[start : start + max_rows]
        if not chunk:
            return None
        rows = Rows(
            sequence=self.number,
            token_ids=np.array(chunk, dtype=np.int32),
            positions=np.arange(start, start + len(chunk), dtype=np.int32),
            visible=None,
            num_outputs=int(start + len(chunk) == len(self.tokens)),
        )
        return Share(self, rows)

    def plan_growth(self, beam_width: int, least_prob: float) -> Share | None:
        """The best vertices to expand, of at least this path probability."""
        tree = self.tree
        beam_width = min(beam_width, MAX_TAIL_SLOTS - len(self.cache))
        if beam_width <= 0:
            return None
        vertices = tree.frontier(beam_width, least_prob)
        while barren := [v for v in vertices if self._is_end(v)]:
            _expand_to_nothing(tree, barren)
            vertices = tree.frontier(beam_width, least_prob)
        if not vertices:
            return None
        found = [tree.vertex(v) for v in vertices]
        root = tree.vertex(tree.root)
        above = tree.num_committed - 1 - root.depth
        growths = tuple(Growth(v.number, v.parent, v.token_id, above + v.depth) for v in found)
        sum_probs = sum(math.exp(v.total - root.total) for v in found)
        return Share(self, self.cache.plan(self.number, growths), growths, sum_probs)

    def stuck(self) -> None:
        """Nothing can be grown before the next verdict."""
        if self._rounds is not None:
            self._rounds.stuck()

    def written(self, share: Share, children: Children) -> None:
        """The level is done: its rows are in the cache, and these are their children."""
        tree = self.tree
        if share.growths:
            self.cache.written(share.growths)
            vertices = [growth.vertex for growth in share.growths]
        else:
            self.cache.num_prefix += len(share.rows.token_ids)
            vertices = [tree.root]
            if not share.rows.num_outputs or tree.is_expanded(tree.root):
                return
        _expand(tree, vertices, children, self._vocab_size)
        if self._rounds is not None:
            self._rounds.grown()

    def _is_end(self, vertex: int) -> bool:
        tree, ends = self.tree, self._model.eos_token_ids
        return bool(ends) and tree.token_id(vertex) in ends and vertex != tree.root


def _rounds(wishes: GrowthWishes) -> LockstepRounds | None:
    if not wishes.lockstep_levels:
        return None
    return LockstepRounds(
        LockstepTerms(wishes.lockstep_levels, wishes.lockstep_vertices, wishes.is_proactive)
    )


def _expand_to_nothing(tree: GrowingTree, vertices: Sequence[int]) -> None:
    shape = (len(vertices), 0)
    tree.expand(vertices, np.empty(shape, np.int32), np.empty(shape, np.float32))


def _expand(
    tree: GrowingTree, vertices: Sequence[int], children: Children, vocab_size: int
) -> None:
    """Hang the children below their vertices, but for tokens that the target does not know."""
    is_known = children.token_ids < vocab_size
    if is_known.all():
        tree.expand(vertices, children.token_ids, children.log_probs)
        return
    for i, vertex in enumerate(vertices):
        known = is_known[i]
        tree.expand(
            [vertex], children.token_ids[i : i + 1, known], children.log_probs[i : i + 1, known]
        )
