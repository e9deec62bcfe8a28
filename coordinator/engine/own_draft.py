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
from dataclasses import dataclass

from coordinator.engine.measure import BRANCH_WIDTH
from coordinator.engine.messages import LevelTerms, VerificationBatch
from coordinator.engine.own_cache import OwnRows
from coordinator.engine.own_plan import Drafted, LevelEntry, LevelPlanner
from coordinator.engine.own_tree import Level, OwnTree
from coordinator.engine.session import EngineSession
from coordinator.engine.work import Work, rebound, with_rows
from specedge_p2p.lm.ports import Children, LanguageModel, ModelError, OutOfCache
from specedge_p2p.tree.levels import pays

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
        self._drafted: dict[int, Drafted] = {}
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
            trees |= {entry.session: rebound(trees[entry.session], batch) for entry in plan}
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
    ) -> list[LevelEntry]:
        """What the next level writes; nothing where it does not pay."""
        planner = LevelPlanner(self._model.info, row_price, terms)
        plan: list[LevelEntry] = []
        room = self._max_prefill_rows if may_prefill else 0
        for work in works:
            drafted = self._open(work)
            entry = None if drafted is None else planner.entry(drafted, work, room)
            if entry is None:
                continue
            if entry.spread is None:
                room -= len(entry.rows.token_ids)
            plan.append(entry)
        return plan if terms.is_fixed or _is_worth(plan, terms) else []

    def _open(self, work: Work) -> Drafted | None:
        """The session as the draft model knows it, None where it cannot or need not go on."""
        session = work.session
        if work.entry is None or work.entry.max_rows < 1:
            return None
        if len(session.token_ids) > self._model.info.max_context:
            return None
        drafted = self._drafted.get(session.number)
        if drafted is None:
            session.own = OwnTree(session.token_ids)
            drafted = self._drafted[session.number] = Drafted(session, session.own)
            self._model.add_sequence(session.number, session.sampling, session.noise_key)
        return None if drafted.is_off else drafted

    # --- levels ----------------------------------------------------------------------------------

    def _level(self, plan: list[LevelEntry], row_price: float) -> int:
        """One forward; returns its rows. What has no room is taken out of the plan."""
        for entry, children in zip(plan, self._expand(plan), strict=True):
            self._take(entry, children, row_price)
        return sum(len(entry.rows.token_ids) for entry in plan)

    def _expand(self, plan: list[LevelEntry]) -> list[Children]:
        width = min(BRANCH_WIDTH, self._model.info.vocab_size)
        while plan:
            try:
                children = self._model.expand([entry.rows for entry in plan], width)
            except OutOfCache:
                self._make_room(plan)
            except ModelError:
                self._num_errors += 1
                for entry in plan:  # nobody knows what it has written
                    self._restart(entry.drafted)
                plan.clear()
            else:
                self._num_errors = 0
                return children
        return []

    def _make_room(self, plan: list[LevelEntry]) -> None:
        """The youngest session gives way, of those that hold rows and those that want some.

        It need not be in the plan: the cache holds rows of sessions that a step left out, too.
        """
        wanting = {entry.session for entry in plan}
        holding = [d for n, d in self._drafted.items() if n in wanting or d.rows.num_committed]
        youngest = max(holding, key=lambda drafted: drafted.session.age)
        plan[:] = [entry for entry in plan if entry.drafted is not youngest]
        self._restart(youngest)
        youngest.is_off = True

    def _take(self, entry: LevelEntry, children: Children, row_price: float) -> None:
        drafted, spread = entry.drafted, entry.spread
        if spread is None:
            drafted.rows.written_causal(len(entry.rows.token_ids))
            if entry.rows.num_outputs:
                level = Level([0], children, row_price, self._vocab_size)
                drafted.tree.hang(entry.bound, entry.vertices, level)
            return
        level = Level(spread.new, children, row_price, self._vocab_size)
        drafted.tree.hang(entry.bound, entry.vertices, level)
        drafted.rows.written(spread, entry.bound, entry.vertices)

    def _restart(self, drafted: Drafted) -> None:
        """Begin a session anew, without rows and without a tree."""
        session = drafted.session
        self._model.drop_sequence(session.number)
        self._model.add_sequence(session.number, session.sampling, session.noise_key)
        drafted.rows = OwnRows()
        drafted.tree.restart()


def _is_worth(plan: Sequence[LevelEntry], terms: LevelTerms) -> bool:
    return pays(
        terms.worth * sum(entry.mass for entry in plan),
        sum(entry.num_new for entry in plan),
        terms.level_time_s,
        terms.level_row_time_s,
        terms.row_time_s,
        terms.tokens_per_s,
    )
