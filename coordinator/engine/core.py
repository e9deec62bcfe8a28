"""The engine without I/O: sessions, steps, and one forward of the target model per step.

Theory of operation. `handle` takes messages at any time between two steps and `step` runs one
verification batch: it binds every entry to what is known at that moment, lets the engine's own
draft model add what pays (see own_draft.py), packs prompt chunks, trees and plain rows into one
forward, accepts what the target agrees with and compacts the cache.
The next step may be queued before this one's result was seen: the engine knows roots, keys and end
conditions itself, and its committed tokens may run ahead of the coordinator's by the steps in the
queue.

Nothing but the target's own choices decides a token, so trees, limits on rows and a full cache
change how fast a session goes, never what it says.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import assert_never

from coordinator.engine.admission import OUT_OF_CACHE, Room, ending_of, refusal
from coordinator.engine.measure import NO_PRICE, StepPrice
from coordinator.engine.messages import (
    AddVertices,
    CloseSession,
    DropSource,
    EntryResult,
    FromEngine,
    OpenSession,
    Ready,
    SessionFailed,
    StepDone,
    ToEngine,
    VerificationBatch,
)
from coordinator.engine.own_draft import Levels, OwnDraft
from coordinator.engine.packing import Outcome, judge, judge_first, share_prefill
from coordinator.engine.session import EngineSession
from coordinator.engine.settings import EngineLimits
from coordinator.engine.work import (
    Work,
    plain_work,
    prefill_work,
    result_of,
    take_fewer,
    tree_work,
)
from specedge_p2p.lm.ports import LanguageModel, ModelError, OutOfCache, TokenIds


class EngineCore:
    """See the head of this file. Synchronous; not thread-safe.

    Args:
        model: the target model; nobody else may use it.
        clock: monotonic seconds.
        limits: see EngineLimits.
        draft: the engine's own draft model; nobody else may use it.
    """

    def __init__(
        self,
        model: LanguageModel,
        clock: Callable[[], float],
        limits: EngineLimits | None = None,
        draft: LanguageModel | None = None,
    ) -> None:
        self._model = model
        self._clock = clock
        self._limits = limits or EngineLimits()
        self._sessions: dict[int, EngineSession] = {}
        self._queued: deque[VerificationBatch] = deque()
        self._failures: list[SessionFailed] = []
        self._own: OwnDraft | None = None
        if draft is not None:
            num_rows = self._limits.max_draft_prefill_rows
            self._own = OwnDraft(draft, clock, model.info.vocab_size, num_rows)
        self._num_opened = 0
        self._num_arrivals = 0

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    @property
    def num_queued(self) -> int:
        return len(self._queued)

    @property
    def is_full(self) -> bool:
        """No further batch can be queued; whoever feeds the engine must wait for a step."""
        return len(self._queued) >= self._limits.max_queued_steps

    def session(self, number: int) -> EngineSession | None:
        return self._sessions.get(number)

    def ready(self, step: StepPrice, level: StepPrice = NO_PRICE) -> Ready:
        """What the engine is, and what was measured of a step and of a level."""
        info = self._model.info
        return Ready(
            model=info.name,
            vocab_size=info.vocab_size,
            max_context=info.max_context,
            eos_token_ids=list(info.eos_token_ids),
            dtype=info.dtype,
            fingerprint=info.fingerprint,
            step_time_s=step.step_time_s,
            row_time_s=step.row_time_s,
            level_time_s=level.step_time_s,
            level_row_time_s=level.row_time_s,
            draft_fingerprint=b"" if self._own is None else self._own.fingerprint,
        )

    def take_failures(self) -> list[SessionFailed]:
        """Sessions that failed since the last call; the coordinator must hear of them."""
        failures, self._failures = self._failures, []
        return failures

    # --- messages --------------------------------------------------------------------------------

    def handle(self, message: ToEngine) -> None:
        """Take a message. Raises ValueError for a batch when `is_full`."""
        match message:
            case AddVertices():
                self._add_vertices(message)
            case VerificationBatch():
                if self.is_full:
                    raise ValueError("the queue of steps is full")
                self._queued.append(message)
            case OpenSession():
                self._open(message)
            case CloseSession():
                self._close(message.session)
            case DropSource():
                if session := self._sessions.get(message.session):
                    session.drop_source(message.source)
            case _:
                assert_never(message)

    def _open(self, message: OpenSession) -> None:
        info = self._model.info
        num_waiting = sum(s.num_missing_rows for s in self._sessions.values() if not s.finish)
        room = Room(
            is_in_use=message.session in self._sessions,
            num_places=self._limits.max_sessions - len(self._sessions),
            num_free_rows=self._model.num_free_rows - num_waiting,
        )
        refused = refusal(message, info, room)
        if refused is not None:
            self._failures.append(refused)
            return
        self._model.add_sequence(message.session, message.sampling, message.noise_key)
        self._num_opened += 1
        self._sessions[message.session] = EngineSession(
            message, self._num_opened, ending_of(message, info), info.vocab_size
        )

    def _close(self, number: int) -> None:
        if self._sessions.pop(number, None) is not None:
            self._forget(number)

    def _fail(self, session: EngineSession, code: str, text: str) -> None:
        self._failures.append(SessionFailed(session.number, code, text))
        self._close(session.number)

    def _forget(self, number: int) -> None:
        """Free a session's rows in both caches."""
        self._model.drop_sequence(number)
        if self._own is not None:
            self._own.close(number)

    def _add_vertices(self, message: AddVertices) -> None:
        session = self._sessions.get(message.session)
        if session is None or session.finish:
            return
        self._num_arrivals += 1
        session.add_vertices(message, self._num_arrivals, self._limits)

    # --- steps -----------------------------------------------------------------------------------

    def step_next(self) -> list[FromEngine]:
        """Run the oldest queued batch: the sessions that failed, then StepDone."""
        done = self.step(self._queued.popleft())
        return [*self.take_failures(), done]

    def step(self, batch: VerificationBatch) -> StepDone:
        """Bind, draft, forward, accept, compact."""
        started_s = self._clock()
        works = self._bind(batch)
        bound_s = self._clock()
        levels = Levels(works) if self._own is None else self._own.grow(works, batch)
        works, choices = self._forward(levels.works)
        for work in works:
            work.session.last_step = batch.step_no
        num_context_rows = sum(work.session.num_rows for work in works)
        results = [
            self._settle(work, chosen)
            for work, chosen in zip(works, choices, strict=True)
            if self._is_sound(work, chosen)
        ]
        return StepDone(
            step_no=batch.step_no,
            started_s=started_s,
            ended_s=self._clock(),
            bind_s=bound_s - started_s,
            num_forward_rows=sum(len(work.rows.token_ids) for work in works),
            results=results,
            num_prefill_rows=sum(len(w.rows.token_ids) for w in works if w.bound is None),
            num_context_rows=num_context_rows,
            num_levels=levels.num_levels,
            num_level_rows=levels.num_rows,
            level_s=levels.level_s,
            level_mass=levels.mass,
        )

    def _bind(self, batch: VerificationBatch) -> list[Work]:
        """Trees and prompt chunks, both in the order of the entries."""
        entries = {entry.session: entry for entry in batch.entries}
        live = [
            session
            for number in entries
            if (session := self._sessions.get(number)) is not None and not session.finish
        ]
        trees = [
            tree_work(session, entries[session.number], batch)
            for session in live
            if session.is_prefilled
        ]
        waiting = [session for session in live if not session.is_prefilled]
        budget = min(batch.prefill_tokens, self._limits.max_prefill_rows)
        shares = share_prefill([s.num_missing_rows for s in waiting], budget)
        chunks = [
            prefill_work(session, share)
            for session, share in zip(waiting, shares, strict=True)
            if share
        ]
        return take_fewer(trees, batch.max_sessions) + chunks

    def _forward(self, works: list[Work]) -> tuple[list[Work], Sequence[TokenIds]]:
        """Choices for as many works as the cache can take; what had to give way has failed."""
        while works:
            try:
                return works, self._model.choose([work.rows for work in works])
            except OutOfCache:
                works = self._shrink(works)
            except ModelError:
                return self._forward_alone(works)
        return [], []

    def _shrink(self, works: list[Work]) -> list[Work]:
        """Bring less: first no trees, then without the youngest session that has or wants rows."""
        if any(work.num_tree_rows for work in works):
            return [plain_work(work) for work in works]
        wanting = {work.session.number for work in works}
        youngest = max(
            (s for s in self._sessions.values() if s.number in wanting or _holds_rows(s)),
            key=lambda s: s.age,
        )
        self._fail(youngest, OUT_OF_CACHE, "the engine's cache is full; try again later")
        return [work for work in works if work.session is not youngest]

    def _forward_alone(self, works: list[Work]) -> tuple[list[Work], list[TokenIds]]:
        """One forward per work, so that only the session that the model cannot serve is lost."""
        served: list[Work] = []
        choices: list[TokenIds] = []
        for work in works:
            try:
                chosen = self._choose_alone(work)
            except ModelError as error:
                self._fail(work.session, "model_error", str(error))
                continue
            served.append(work)
            choices += chosen
        return served, choices

    def _choose_alone(self, work: Work) -> list[TokenIds]:
        number = work.session.number
        if self._model.num_tail_rows(number):
            self._model.compact(number, ())
        if self._model.num_prefix_rows(number) != work.session.num_rows:
            raise ModelError("the failed step left the session's cache in an unknown state")
        return self._model.choose([work.rows])

    def _is_sound(self, work: Work, choices: TokenIds) -> bool:
        """Whether tokens were chosen; logits that are no numbers choose none.

        Committed, such a choice would kill this engine and every one that takes the session over.
        """
        is_sound = not len(choices) or int(choices.max()) < self._model.info.vocab_size
        if not is_sound:
            self._fail(work.session, "model_error", "the model's logits are not numbers")
        return is_sound

    def _settle(self, work: Work, choices: TokenIds) -> EntryResult:
        session = work.session
        from_position = len(session.token_ids)
        if work.bound is None:
            session.num_rows += len(work.rows.token_ids)
            if not work.rows.num_outputs:
                return EntryResult(session.number, from_position, [], [], 0, 0)
            outcome = judge_first(int(choices[0]), from_position, session.ending)
        else:
            outcome = judge(work.bound, choices, from_position, session.ending)
        self._keep_rows(work, outcome)
        seen = session.seen(outcome.token_ids[0])
        session.commit(outcome)
        return result_of(work, outcome, from_position, seen)

    def _keep_rows(self, work: Work, outcome: Outcome) -> None:
        if outcome.finish:
            self._forget(work.session.number)
            return
        if work.num_tree_rows:
            self._model.compact(work.session.number, outcome.commit_slots)
        if self._own is not None:
            self._own.settle(work.session, outcome.token_ids)


def _holds_rows(session: EngineSession) -> bool:
    return not session.finish and session.num_rows > 0
