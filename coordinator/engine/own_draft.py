"""The engine's own draft model: levels between binding and verifying, where they pay.

A step ends on a token that its rows lacked, so what nobody covered is what a level is for: one
forward of the draft model expands, over all sessions of the step, the rows below which the most
probability has no child yet; the step is bound anew, and the next level is weighed. With fixed
trees the levels come whatever they bring, as in engines that speculate by themselves (SpecInfer,
arXiv 2305.09781).

Nothing in here decides a token. A draft model without room or with an error costs guesses: its
session, or the step, goes on without.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from coordinator.engine.measure import BRANCH_WIDTH
from coordinator.engine.messages import LevelTerms, VerificationBatch
from coordinator.engine.own_cache import OwnRows, Spread
from coordinator.engine.own_tree import NO_VERTEX, Level, OwnTree
from coordinator.engine.session import EngineSession
from coordinator.engine.work import Work, rebound, with_rows
from specedge_p2p.lm.ports import Children, LanguageModel, ModelError, OutOfCache, Rows
from specedge_p2p.tree.binding import BoundRows
from specedge_p2p.tree.levels import Expansions, expansions, pays, useful_share

MAX_CHAIN = 64
"""More missing committed tokens than this are written as causal rows, without a tree."""
MAX_ERRORS = 3
"""Forwards that fail in a row until the draft model is given up."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What own drafting did in a step."""

    works: list[Work]
    num_levels: int = 0
    num_rows: int = 0
    level_s: float = 0.0
    mass: float = 0.0
    """Tokens that were expected of them."""


@dataclass(slots=True)
class _Drafted:
    """A session that the draft model knows."""

    session: EngineSession
    tree: OwnTree
    rows: OwnRows = field(default_factory=OwnRows)
    is_off: bool = False
    """It gave way when the cache was full, or the draft model cannot read its tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """One session's share of a level, and the tokens it is expected to bring.

    Without a spread it writes known tokens.
    """

    drafted: _Drafted
    work: Work
    rows: Rows
    vertices: list[int]
    mass: float
    spread: Spread | None = None


class OwnDraft:
    """See the head of this file.

    Args:
        model: the draft model; nobody else may use it. Its sequences carry the sessions' numbers.
        clock: monotonic seconds.
        vocab_size: of the target.
        max_prefill_rows: most rows of known tokens that a step writes over all sessions.
    """

    def __init__(
        self,
        model: LanguageModel,
        clock: Callable[[], float],
        vocab_size: int,
        max_prefill_rows: int,
    ) -> None:
        self._model = model
        self._clock = clock
        self._vocab_size = vocab_size
        self._max_prefill_rows = max_prefill_rows
        self._drafted: dict[int, _Drafted] = {}
        self._num_errors = 0

    @property
    def fingerprint(self) -> bytes:
        return self._model.info.fingerprint

    def close(self, session: int) -> None:
        """Forget a session; those that gave way to it may come back."""
        if self._drafted.pop(session, None) is None:
            return
        self._model.drop_sequence(session)
        for drafted in self._drafted.values():
            drafted.is_off = False

    def grow(self, works: list[Work], batch: VerificationBatch) -> Levels:
        """Grow the bound trees of a step as far as it pays; `works` with what was found."""
        terms = batch.levels
        if terms is None or self._num_errors >= MAX_ERRORS:
            return Levels(works)
        trees = {work.session.number: work for work in works if work.bound is not None}
        started_s, num_levels, num_rows, mass = self._clock(), 0, 0, 0.0
        while num_levels < terms.max_levels:
            plan = self._plan(trees.values(), batch.row_price, terms, may_prefill=not num_levels)
            num_written = self._level(plan, batch.row_price)
            if not num_written:
                break
            num_levels += 1
            num_rows += num_written
            mass += sum(entry.mass for entry in plan)
            trees |= {
                number: rebound(work, batch)
                for entry in plan
                if (work := trees.get(number := entry.work.session.number)) is not None
            }
        if not num_levels:
            return Levels(works)
        grown = [with_rows(trees.get(work.session.number, work)) for work in works]
        return Levels(grown, num_levels, num_rows, self._clock() - started_s, mass)

    def settle(self, session: EngineSession, token_ids: Sequence[int]) -> None:
        """Keep the rows of what was committed. Call it before the session commits."""
        drafted = self._drafted.get(session.number)
        if drafted is None or not drafted.rows.has_tail:
            return
        path = drafted.tree.walk(token_ids)
        self._model.compact(session.number, drafted.rows.keep(path))

    # --- planning --------------------------------------------------------------------------------

    def _plan(
        self,
        works: Iterable[Work],
        row_price: float,
        terms: LevelTerms,
        *,
        may_prefill: bool,
    ) -> list[_Entry]:
        """What the next level writes; nothing where it does not pay."""
        plan: list[_Entry] = []
        num_new = 0
        room = self._max_prefill_rows if may_prefill else 0
        for work in works:
            drafted = self._open(work)
            if drafted is None or work.bound is None:
                continue
            vertices = drafted.tree.vertices(work.bound)
            done = self._done(drafted, work.bound, vertices, row_price)
            found = _choose(work.bound, done, terms, work.session.node_share)
            if not found.rows:
                continue
            mass = found.mass * min(1.0, terms.factor)  # what a bad draft model brings is less
            num_missing = len(drafted.session.token_ids) - drafted.rows.num_committed
            if num_missing > MAX_CHAIN:
                entry = self._prefill(drafted, work, vertices, mass, room)
                room -= 0 if entry is None else len(entry.rows.token_ids)
            else:
                entry = self._growth(drafted, work, vertices, mass, found.rows)
            if entry is not None:
                plan.append(entry)
                num_new += len(found.rows)
        if terms.is_fixed:
            return plan
        mass = terms.worth * sum(entry.mass for entry in plan)
        return plan if self._is_worth(mass, num_new, terms) else []

    def _is_worth(self, mass: float, num_new: int, terms: LevelTerms) -> bool:
        return pays(
            mass,
            num_new,
            terms.level_time_s,
            terms.level_row_time_s,
            terms.row_time_s,
            terms.tokens_per_s,
        )

    def _open(self, work: Work) -> _Drafted | None:
        """The session as the draft model knows it, None where it cannot or need not go on."""
        session = work.session
        if work.entry is None or work.entry.max_rows < 1:
            return None
        if len(session.token_ids) > self._model.info.max_context:
            return None
        drafted = self._drafted.get(session.number)
        if drafted is None:
            session.own = OwnTree(session.token_ids)
            drafted = self._drafted[session.number] = _Drafted(session, session.own)
            self._model.add_sequence(session.number, session.sampling, session.noise_key)
        return None if drafted.is_off else drafted

    def _done(
        self, drafted: _Drafted, bound: BoundRows, vertices: list[int], row_price: float
    ) -> set[int]:
        """Rows that need not be expanded or cannot be, with what lies below the latter.

        A row that the n-gram guess alone has cannot: the tree has no probability for it. One with
        less left uncovered than a row costs need not: no child of it could become a row.
        """
        info, session, tree = self._model.info, drafted.session, drafted.tree
        deepest = min(session.max_depth - 1, info.max_context - len(session.token_ids))
        done: set[int] = set()
        barred: set[int] = set()
        columns = zip(
            bound.token_ids,
            bound.parents,
            bound.depths,
            bound.sources,
            bound.uncovered(),
            vertices,
            strict=True,
        )
        for row, (token_id, parent, depth, source, uncovered, vertex) in enumerate(columns):
            is_unknown = vertex == NO_VERTEX and not source
            is_beyond = depth > deepest or token_id >= info.vocab_size
            if is_unknown or is_beyond or parent in barred:
                barred.add(row)
            elif uncovered >= row_price and not tree.is_expanded(vertex):
                continue
            done.add(row)
        return done

    def _prefill(
        self, drafted: _Drafted, work: Work, vertices: list[int], mass: float, room: int
    ) -> _Entry | None:
        """A chunk of known tokens; the last one brings the root's children."""
        token_ids, first = drafted.session.token_ids, drafted.rows.num_prefix
        chunk = token_ids[first : first + room]
        if not chunk or not self._can_read(drafted, chunk):
            return None
        is_last = first + len(chunk) == len(token_ids)
        is_wanted = is_last and not drafted.tree.is_expanded(vertices[0])
        rows = Rows(
            sequence=drafted.session.number,
            token_ids=np.array(chunk, dtype=np.int32),
            positions=np.arange(first, first + len(chunk), dtype=np.int32),
            visible=None,
            num_outputs=int(is_wanted),
        )
        return _Entry(drafted, work, rows, vertices, mass)

    def _growth(
        self,
        drafted: _Drafted,
        work: Work,
        vertices: list[int],
        mass: float,
        chosen: Sequence[int],
    ) -> _Entry | None:
        """The chosen rows, with the ancestors and committed tokens that have no rows yet."""
        bound, tree, rows = work.bound, drafted.tree, drafted.rows
        assert bound is not None  # noqa: S101 - for the type checker
        chain = tuple(drafted.session.token_ids[rows.num_committed :])
        if not self._can_read(drafted, chain):
            return None
        wanted: set[int] = set()
        for chosen_row in chosen:
            row = chosen_row
            while row > 0 and row not in wanted and not rows.has_row(vertices[row]):
                wanted.add(row)
                row = bound.parents[row]
        if not tree.is_expanded(vertices[0]):
            wanted.add(0)
        new = tuple(row for row in sorted(wanted) if not tree.is_expanded(vertices[row]))
        known = tuple(row for row in sorted(wanted) if tree.is_expanded(vertices[row]))
        spread = Spread(chain, known, new)
        planned = rows.plan(drafted.session.number, spread, bound, vertices)
        return _Entry(drafted, work, planned, vertices, mass, spread)

    def _can_read(self, drafted: _Drafted, token_ids: Sequence[int]) -> bool:
        if max(token_ids, default=0) >= self._model.info.vocab_size:
            drafted.is_off = True
        return not drafted.is_off

    # --- levels ----------------------------------------------------------------------------------

    def _level(self, plan: list[_Entry], row_price: float) -> int:
        """One forward; returns its rows. What has no room is taken out of the plan."""
        for entry, children in zip(plan, self._expand(plan), strict=True):
            self._take(entry, children, row_price)
        return sum(len(entry.rows.token_ids) for entry in plan)

    def _expand(self, plan: list[_Entry]) -> list[Children]:
        width = min(BRANCH_WIDTH, self._model.info.vocab_size)
        while plan:
            try:
                children = self._model.expand([entry.rows for entry in plan], width)
            except OutOfCache:
                youngest = max(plan, key=lambda entry: entry.work.session.age)
                plan.remove(youngest)
                self._restart(youngest.drafted)
                youngest.drafted.is_off = True
            except ModelError:
                self._num_errors += 1
                for entry in plan:  # nobody knows what it has written
                    self._restart(entry.drafted)
                plan.clear()
            else:
                self._num_errors = 0
                return children
        return []

    def _take(self, entry: _Entry, children: Children, row_price: float) -> None:
        drafted, bound, spread = entry.drafted, entry.work.bound, entry.spread
        assert bound is not None  # noqa: S101 - for the type checker
        if spread is None:
            drafted.rows.written_causal(len(entry.rows.token_ids))
            if entry.rows.num_outputs:
                level = Level([0], children, row_price, self._vocab_size)
                drafted.tree.hang(bound, entry.vertices, level)
            return
        level = Level(spread.new, children, row_price, self._vocab_size)
        drafted.tree.hang(bound, entry.vertices, level)
        drafted.rows.written(spread, bound, entry.vertices)

    def _restart(self, drafted: _Drafted) -> None:
        """Begin a session anew, without rows and without a tree."""
        session = drafted.session
        self._model.drop_sequence(session.number)
        self._model.add_sequence(session.number, session.sampling, session.noise_key)
        drafted.rows = OwnRows()
        drafted.tree.restart()


def _choose(bound: BoundRows, done: set[int], terms: LevelTerms, node_share: float) -> Expansions:
    """The rows to expand: those with the most uncovered mass, or of a fixed tree the best."""
    if not terms.is_fixed:
        return expansions(bound, done, terms.width, useful_share(node_share))
    rows = [row for row in range(len(bound)) if row not in done]
    rows.sort(key=lambda row: -bound.probs[row])  # stable: of equal ones the earlier row
    return Expansions(tuple(rows[: terms.width]), 0.0)
