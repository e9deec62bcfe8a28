"""Grows the trees of all sessions, one batched forward of the draft model after the other.

A *level* is one forward. It expands the best frontier vertices of every session and, where a
session's committed tokens have no rows yet (its prompt, or tokens it had not guessed), writes
these first. Growth never waits for a verdict: between two levels the caller commits what verdicts
said and takes what the trees gained. What a verdict leaves alive is compacted, never recomputed.

Synchronous, without torch or trio; one thread at a time.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from node.draft_session import DraftRequest, DraftSession, Share
from node.growth import WIDTHS, GrowthControl
from node.level_times import LevelShape, LevelTimes
from specedge_p2p.lm.ports import (
    Children,
    LanguageModel,
    ModelError,
    OutOfCache,
    OutOfMemory,
)
from specedge_p2p.tree.growth import Gain, GrowthSettings
from specedge_p2p.wire.messages import GrowthWishes

_log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Forwards that fail in a row until a model is broken."""
_ORDINARY_CONTEXT = 256

__all__ = ["DraftRequest", "Drafter", "DrafterSettings", "LevelDone", "Shed"]


@dataclass(frozen=True, slots=True)
class DrafterSettings:
    """How much one level may do.

    Args:
        growth: of every tree; its beam width is the most, a node's own costs may ask for less.
        prefill_rows: most rows of committed tokens that one level writes, over all sessions.
        has_early_stop: whether growth stops where it costs more than it brings.
    """

    growth: GrowthSettings = field(default_factory=lambda: GrowthSettings(beam_width=WIDTHS[-1]))
    prefill_rows: int = 512
    has_early_stop: bool = True


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
    is_broken: bool = False
    """The model failed, and before that as often in a row as makes it not worth another try now."""


class Drafter:
    """All sessions of a node over one draft model. Session numbers are chosen by the caller.

    Args:
        model: the draft model; nobody else may use it.
        settings: see DrafterSettings.
        times: what levels take here; learned on from every level when there is a clock.
        clock: seconds, rising.
    """

    def __init__(
        self,
        model: LanguageModel,
        settings: DrafterSettings | None = None,
        times: LevelTimes | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._model = model
        self._settings = settings or DrafterSettings()
        self.times = times or LevelTimes()
        self._control = GrowthControl(self.times, self._settings.has_early_stop)
        self._clock = clock
        self._sessions: dict[int, DraftSession] = {}
        self._num_failures = 0
        """Forwards that failed, one after the other."""

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
        self._model.add_sequence(session_no, request.sampling, request.key)
        self._sessions[session_no] = DraftSession(
            session_no, request, self._settings.growth, self._model.info
        )

    def resume(self, session_no: int, wishes: GrowthWishes) -> None:
        """A new link took over: number the session's trees from 1 again and send all that lives."""
        self._sessions[session_no].resume(wishes)

    def commit(self, session_no: int, token_ids: Sequence[int]) -> bool:
        """Apply one verdict's tokens, none too; True when the tree had guessed all of them."""
        is_hit, compaction = self._sessions[session_no].commit(token_ids)
        if compaction is not None:
            self._model.compact(session_no, compaction.commit, compaction.keep)
        return is_hit

    def restart(self, session_no: int) -> None:
        """The coordinator ended the current tree: send what is live again, in a new one."""
        self._sessions[session_no].restart()

    def tune(self, session_no: int, wishes: GrowthWishes) -> None:
        self._sessions[session_no].tune(wishes)

    def close(self, session_no: int) -> None:
        """Forget a session; unknown numbers are ignored."""
        if self._sessions.pop(session_no, None) is not None:
            self._model.drop_sequence(session_no)

    def level_time_s(self, num_sessions: int) -> float:
        """Predicted for so many sessions of ordinary length; 0 before anything was measured."""
        if not self.times.is_known:
            return 0.0
        num_context_rows = _ORDINARY_CONTEXT * num_sessions
        num_rows = num_sessions * self._beam_width(num_sessions, num_context_rows)
        return self.times.predict(LevelShape(num_rows, num_sessions, num_context_rows))

    def gains(self, session_no: int, room: int) -> Gain | None:
        """Vertices worth sending that were not sent yet, at most `room`.

        In lock-step only when a round's proposal is due, and all of it at once.
        """
        return self._sessions[session_no].gain(room)

    def level(self) -> LevelDone:
        """One forward over all sessions that have something to do."""
        shed: list[Shed] = []
        num_failures = self._num_failures
        started_s = self._clock() if self._clock is not None else 0.0
        plan = self._plan(shed)
        children: list[Children] = []
        while plan:
            try:
                children = self._model.expand(
                    [share.rows for share in plan], self._settings.growth.branch_width
                )
            except OutOfCache as error:
                num_shed = len(shed)
                plan = self._make_room(plan, shed)
                if isinstance(error, OutOfMemory) and len(shed) > num_shed:
                    self._failed(error)  # not even one session's tokens found room
            except ModelError as error:
                # Somebody else may have taken the memory; nobody knows which rows were written.
                self._failed(error)
                for share in plan:
                    self._shed(share.session, "the draft model failed", shed)
                plan = []
            else:
                self._num_failures = 0
                break
        shape = _shape(plan)
        for share, result in zip(plan, children, strict=True):
            share.session.written(share, result)
        num_prefill_rows = sum(len(share.rows.token_ids) for share in plan if not share.growths)
        if self._clock is not None and plan and not num_prefill_rows:
            self.times.observe(shape, self._clock() - started_s)
        is_broken = self._num_failures > max(num_failures, MAX_FAILURES - 1)
        return LevelDone(len(plan), shape.num_rows, num_prefill_rows, tuple(shed), is_broken)

    # --- planning ---------------------------------------------------------------------------------

    def _plan(self, shed: list[Shed]) -> list[Share]:
        growing: list[DraftSession] = []
        plan: list[Share] = []
        prefill_left = self._settings.prefill_rows
        for session in list(self._sessions.values()):
            if reason := session.why_not:
                self._shed(session, reason, shed)
            elif session.is_paused or len(session.tokens) >= session.limit:
                session.stuck()
            elif session.is_prefilled:
                growing.append(session)
            elif share := session.plan_prefill(prefill_left):
                prefill_left -= len(share.rows.token_ids)
                plan.append(share)
        return plan + self._plan_growth(growing, has_prefill=bool(plan))

    def _plan_growth(self, sessions: Sequence[DraftSession], *, has_prefill: bool) -> list[Share]:
        """Which sessions grow; none where what they would find is not worth a forward."""
        sessions = [session for session in sessions if session.may_grow]
        num_context = sum(len(s.tokens) + len(s.cache) for s in sessions)
        beam_width = self._beam_width(len(self._sessions), num_context)
        shape = LevelShape(beam_width * len(sessions), len(sessions), num_context)
        least_prob = self._control.least_row_prob(shape)
        shares = [s.plan_growth(s.beam_width or beam_width, least_prob) for s in sessions]
        plan = [share for share in shares if share is not None]
        sum_probs = sum(share.sum_probs for share in plan)
        if not has_prefill and not self._control.is_worth_a_level(sum_probs, len(sessions)):
            plan = []
        planned = {share.session.number for share in plan}
        for session in sessions:
            if session.number not in planned:
                session.stuck()
        return plan

    def _beam_width(self, num_sessions: int, num_context_rows: int) -> int:
        widest = self._settings.growth.beam_width
        return min(widest, self._control.beam_width(num_sessions, num_context_rows))

    # --- room -------------------------------------------------------------------------------------

    def _make_room(self, plan: list[Share], shed: list[Shed]) -> list[Share]:
        """Make the plan smaller by at least one share, or the cache emptier by one session.

        Growth gives way first: it goes on when a verdict frees rows. Committed tokens must get
        theirs, so when a single session's do not fit, the least useful session goes.
        """
        growing = [share for share in plan if share.growths]
        if growing:
            victim = min(growing, key=lambda share: share.session.usefulness)
            victim.session.is_paused = True
            victim.session.stuck()
            return [share for share in plan if share is not victim]
        if len(plan) > 1:
            return plan[:1]
        session = min(self._sessions.values(), key=lambda s: s.usefulness)
        self._shed(session, "the draft model's cache is full", shed)
        return [share for share in plan if share.session is not session]

    def _failed(self, error: ModelError) -> None:
        self._num_failures += 1
        _log.warning("sessions are given back: %s", error)

    def _shed(self, session: DraftSession, reason: str, shed: list[Shed]) -> None:
        self.close(session.number)
        shed.append(Shed(session.number, reason))


def _shape(plan: Sequence[Share]) -> LevelShape:
    """Before its rows are counted as written."""
    return LevelShape(
        num_rows=sum(len(share.rows.token_ids) for share in plan),
        num_sessions=len(plan),
        num_context_rows=sum(
            share.session.cache.num_prefix + len(share.session.cache) for share in plan
        ),
    )
