"""Grows the trees of all sessions, one batched forward of the draft model after the other.

A *level* is one forward. It expands the best frontier vertices of every session and, where a
session's committed tokens have no rows yet (its prompt, or tokens it had not guessed), writes
these first. Growth never waits for a verdict: between two levels the caller commits what verdicts
said and takes what the trees gained. What a verdict leaves alive is compacted, never recomputed.

Synchronous, without torch or trio; one thread at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from node.draft_cache import Compaction, DraftCache, Growth
from specedge_p2p.lm.ports import (
    MAX_TAIL_SLOTS,
    Children,
    LanguageModel,
    OutOfCache,
    Rows,
    SamplingParams,
)
from specedge_p2p.noise import NoiseKey
from specedge_p2p.tree.growth import Gain, GrowingTree, GrowthSettings
from specedge_p2p.tree.lockstep import LockstepRounds, LockstepTerms
from specedge_p2p.wire.messages import GrowthWishes


@dataclass(frozen=True, slots=True)
class DrafterSettings:
    """How much one level may do."""

    growth: GrowthSettings = field(default_factory=GrowthSettings)
    prefill_rows: int = 512
    """Most rows of committed tokens that one level writes, over all sessions."""

    def beam_width(self, num_sessions: int) -> int:
        """Vertices of one session per level: rows are not free when many sessions share them."""
        if num_sessions >= 12:
            return max(1, self.growth.beam_width // 4)
        if num_sessions >= 2:
            return max(1, self.growth.beam_width // 2)
        return self.growth.beam_width


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
class Shed:
    """A session that the drafter gave up; it is closed already."""

    session_no: int
    reason: str


@dataclass(frozen=True, slots=True)
class LevelDone:
    """What one level did. Without rows there is nothing to do until something is committed."""

    num_sessions: int
    num_rows: int
    num_prefill_rows: int
    shed: tuple[Shed, ...] = ()


@dataclass(slots=True)
class _Session:
    number: int
    tokens: list[int]
    tree: GrowingTree
    limit: int
    """No vertex stands at or beyond this position."""
    vocab_size: int
    """Of the target. The draft model's may be larger or smaller."""
    largest_token: int
    cache: DraftCache = field(default_factory=DraftCache)
    rounds: LockstepRounds | None = None
    """None: continuous drafting."""
    is_paused: bool = False
    """No cache for more rows until a verdict frees some."""
    num_verdicts: int = 0
    num_hits: int = 0

    @property
    def usefulness(self) -> float:
        return (1 + self.num_hits) / (2 + self.num_verdicts)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One session's share of a level: missing committed tokens, or growth."""

    session: _Session
    rows: Rows
    growths: tuple[Growth, ...] = ()


class Drafter:
    """All sessions of a node over one draft model. Session numbers are chosen by the caller."""

    def __init__(self, model: LanguageModel, settings: DrafterSettings | None = None) -> None:
        self._model = model
        self._settings = settings or DrafterSettings()
        self._sessions: dict[int, _Session] = {}

    @property
    def session_nos(self) -> tuple[int, ...]:
        return tuple(self._sessions)

    def num_tokens(self, session_no: int) -> int:
        """Committed tokens, the prompt's included."""
        return len(self._sessions[session_no].tokens)

    def tree_no(self, session_no: int) -> int:
        """Number of the tree that the next gain belongs to, on the current link."""
        return self._sessions[session_no].tree.tree_no

    def open(self, session_no: int, request: DraftRequest) -> None:
        """Begin to draft. Raises ValueError for a number in use or an empty prompt."""
        if session_no in self._sessions or not request.token_ids:
            raise ValueError(f"session {session_no} is in use or has no tokens")
        wishes = request.wishes
        settings = replace(
            self._settings.growth,
            min_prob=wishes.min_prob,
            look_ahead=wishes.look_ahead,
            max_unverified=wishes.max_unverified,
        )
        tokens = list(request.token_ids)
        # A row stands inside the draft model's context; its children may stand at the first
        # position outside.
        limit = min(request.max_position, self._model.info.max_context + 1)
        self._model.add_sequence(session_no, request.sampling, request.key)
        self._sessions[session_no] = _Session(
            number=session_no,
            tokens=tokens,
            tree=GrowingTree(len(tokens), tokens[-1], settings, limit),
            limit=limit,
            vocab_size=request.vocab_size,
            largest_token=max(tokens),
            rounds=_rounds(wishes),
        )

    def resume(self, session_no: int, wishes: GrowthWishes) -> None:
        """A new link took over: number the session's trees from 1 again and send all that lives."""
        session = self._sessions[session_no]
        session.tree.resume()
        session.rounds = None
        self.tune(session_no, wishes)

    def commit(self, session_no: int, token_ids: Sequence[int]) -> bool:
        """Apply one verdict's tokens, none too; True when the tree had guessed all of them."""
        session = self._sessions[session_no]
        root = session.tree.root
        is_hit = session.tree.commit(token_ids)
        if not token_ids:
            return is_hit
        session.tokens.extend(token_ids)
        session.largest_token = max(session.largest_token, *token_ids)
        session.is_paused = False
        session.num_verdicts += 1
        session.num_hits += is_hit
        self._compact(session, session.cache.commit(root, token_ids, keep_subtree=is_hit))
        if session.rounds is not None:
            session.tree.restart()  # every round is a tree of its own
            session.rounds.begin(session.tree.num_levels)
        return is_hit

    def restart(self, session_no: int) -> None:
        """The coordinator ended the current tree: send what is live again, in a new one."""
        session = self._sessions[session_no]
        session.tree.restart()
        if session.rounds is not None:
            session.rounds.again()

    def tune(self, session_no: int, wishes: GrowthWishes) -> None:
        session = self._sessions[session_no]
        session.tree.tune(wishes.min_prob, wishes.look_ahead, wishes.max_unverified)
        rounds = _rounds(wishes)
        if rounds is None or session.rounds is None:
            session.rounds = rounds
            if rounds is not None:
                session.tree.restart()
                rounds.begin(session.tree.num_levels)
        else:
            session.rounds.terms = rounds.terms

    def close(self, session_no: int) -> None:
        """Forget a session; unknown numbers are ignored."""
        if self._sessions.pop(session_no, None) is not None:
            self._model.drop_sequence(session_no)

    def gains(self, session_no: int, room: int) -> Gain | None:
        """Vertices worth sending that were not sent yet, at most `room`.

        In lock-step only when a round's proposal is due, and all of it at once.
        """
        session = self._sessions[session_no]
        if session.rounds is not None:
            room = session.rounds.room(room)
        gain = session.tree.take_gain(room) if room > 0 else None
        if gain is not None and session.rounds is not None:
            session.rounds.proposed()
        return gain

    def level(self) -> LevelDone:
        """One forward over all sessions that have something to do."""
        shed: list[Shed] = []
        plan = self._plan(shed)
        children: list[Children] = []
        while plan:
            try:
                children = self._model.expand(
                    [entry.rows for entry in plan], self._settings.growth.branch_width
                )
            except OutOfCache:
                plan = self._make_room(plan, shed)
            else:
                break
        for entry, result in zip(plan, children, strict=True):
            self._apply(entry, result)
        return LevelDone(
            num_sessions=len(plan),
            num_rows=sum(len(entry.rows.token_ids) for entry in plan),
            num_prefill_rows=sum(len(e.rows.token_ids) for e in plan if not e.growths),
            shed=tuple(shed),
        )

    # --- planning ---------------------------------------------------------------------------------

    def _plan(self, shed: list[Shed]) -> list[_Entry]:
        beam_width = self._settings.beam_width(len(self._sessions))
        prefill_left = self._settings.prefill_rows
        plan = []
        for session in list(self._sessions.values()):
            if reason := self._why_not(session):
                self._shed(session, reason, shed)
                continue
            if session.is_paused or len(session.tokens) >= session.limit:
                _stuck(session)
                continue
            entry: _Entry | None
            if session.cache.num_prefix < len(session.tokens):
                entry = self._plan_prefill(session, prefill_left)
                prefill_left -= 0 if entry is None else len(entry.rows.token_ids)
            elif session.rounds is None or session.rounds.may_grow:
                entry = self._plan_growth(session, beam_width)
            else:
                continue
            if entry is not None:
                plan.append(entry)
        return plan

    def _why_not(self, session: _Session) -> str:
        """Why the draft model cannot go on with a session, "" if it can."""
        info = self._model.info
        if len(session.tokens) > info.max_context:
            return "the session outgrew the draft model's context"
        if session.largest_token >= info.vocab_size:
            return "the session has a token that the draft model does not know"
        return ""

    def _plan_prefill(self, session: _Session, max_rows: int) -> _Entry | None:
        start = session.cache.num_prefix
        chunk = session.tokens[start : start + max_rows]
        if not chunk:
            return None
        rows = Rows(
            sequence=session.number,
            token_ids=np.array(chunk, dtype=np.int32),
            positions=np.arange(start, start + len(chunk), dtype=np.int32),
            visible=None,
            num_outputs=int(start + len(chunk) == len(session.tokens)),
        )
        return _Entry(session, rows)

    def _plan_growth(self, session: _Session, beam_width: int) -> _Entry | None:
        tree = session.tree
        beam_width = min(beam_width, MAX_TAIL_SLOTS - len(session.cache))
        if beam_width <= 0:
            _stuck(session)
            return None
        vertices = tree.frontier(beam_width)
        while barren := [v for v in vertices if self._is_end(tree, v)]:
            _expand_to_nothing(tree, barren)
            vertices = tree.frontier(beam_width)
        if not vertices:
            _stuck(session)
            return None
        growths = tuple(
            Growth(v, tree.parent(v), tree.token_id(v), tree.position(v)) for v in vertices
        )
        return _Entry(session, session.cache.plan(session.number, growths), growths)

    def _is_end(self, tree: GrowingTree, vertex: int) -> bool:
        return tree.token_id(vertex) in self._model.info.eos_token_ids and vertex != tree.root

    # --- results ----------------------------------------------------------------------------------

    def _apply(self, entry: _Entry, children: Children) -> None:
        session, tree = entry.session, entry.session.tree
        if entry.growths:
            session.cache.written(entry.growths)
            vertices = [growth.vertex for growth in entry.growths]
        else:
            session.cache.num_prefix += len(entry.rows.token_ids)
            vertices = [tree.root]
            if not entry.rows.num_outputs or tree.is_expanded(tree.root):
                return
        _expand(tree, vertices, children, session.vocab_size)
        if session.rounds is not None:
            session.rounds.grown()

    # --- room -------------------------------------------------------------------------------------

    def _make_room(self, plan: list[_Entry], shed: list[Shed]) -> list[_Entry]:
        """Make the plan smaller by at least one entry, or the cache emptier by one session.

        Growth gives way first: it goes on when a verdict frees rows. Committed tokens must get
        theirs, so when a single session's do not fit, the least useful session goes.
        """
        growing = [entry for entry in plan if entry.growths]
        if growing:
            victim = min(growing, key=lambda entry: entry.session.usefulness)
            victim.session.is_paused = True
            _stuck(victim.session)
            return [entry for entry in plan if entry is not victim]
        if len(plan) > 1:
            return plan[:1]
        session = min(self._sessions.values(), key=lambda s: s.usefulness)
        self._shed(session, "the draft model's cache is full", shed)
        return [entry for entry in plan if entry.session is not session]

    def _shed(self, session: _Session, reason: str, shed: list[Shed]) -> None:
        self.close(session.number)
        shed.append(Shed(session.number, reason))

    def _compact(self, session: _Session, compaction: Compaction) -> None:
        self._model.compact(session.number, compaction.commit, compaction.keep)


def _rounds(wishes: GrowthWishes) -> LockstepRounds | None:
    if not wishes.lockstep_levels:
        return None
    return LockstepRounds(
        LockstepTerms(wishes.lockstep_levels, wishes.lockstep_vertices, wishes.is_proactive)
    )


def _stuck(session: _Session) -> None:
    if session.rounds is not None:
        session.rounds.stuck()


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
