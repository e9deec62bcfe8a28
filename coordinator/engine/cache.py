"""Who has rows in the target's cache: prompts let in, prefixes shared, the youngest sent out.

A session is let in when its prompt fits beside what the running ones will write soon, the oldest
first, and a session that has to wait holds nothing. When the running ones have grown and a forward
finds no page, the youngest gives way: its rows are dropped and recomputed from its committed tokens
when there is room again. So a cache that is too small costs time and never a token, and the oldest
session always goes on.

Equal beginnings are computed once: full pages of committed rows are named (see lm/prefix.py), a
session begins with the pages that are known, and waits while another one writes the page it needs.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from coordinator.engine.admission import OUT_OF_CACHE
from coordinator.engine.messages import SessionFailed
from coordinator.engine.session import EngineSession
from coordinator.engine.work import Work, plain_work, prefill_work
from specedge_p2p.lm.ports import LanguageModel, ModelError, OutOfCache, TokenIds
from specedge_p2p.lm.prefix import PageName

HEADROOM_ROWS = 64
"""Rows that a running session may still write before another one is let in."""


@dataclass(slots=True)
class Forwarded:
    """What a forward brought.

    Args:
        works: those that were served, with their choices.
        preempted: sessions whose rows were dropped.
        failures: sessions that cannot be served.
    """

    works: list[Work]
    choices: Sequence[TokenIds] = ()
    preempted: list[EngineSession] = field(default_factory=list)
    failures: list[SessionFailed] = field(default_factory=list)


class TargetCache:
    """See the head of this file. The only one who opens and drops the target's sequences."""

    def __init__(self, model: LanguageModel, max_prefill_rows: int) -> None:
        self._model = model
        self._max_prefill_rows = max_prefill_rows
        self._num_reused_rows = 0

    def take_reused_rows(self) -> int:
        """Rows that were shared instead of computed since the last call."""
        num_rows, self._num_reused_rows = self._num_reused_rows, 0
        return num_rows

    def open(self, session: EngineSession) -> None:
        self._model.add_sequence(session.number, session.sampling, session.noise_key)

    def close(self, number: int) -> None:
        self._model.drop_sequence(number)

    def share(self, session: EngineSession) -> None:
        """Let others begin with this session's full pages."""
        page_rows = self._model.cache.page_rows
        if session.num_rows // page_rows > session.num_shared_rows // page_rows:
            session.num_shared_rows = session.num_rows
            self._model.share_prefix(session.number, session.page_names(session.num_rows))

    # --- prompts ---------------------------------------------------------------------------------

    def chunks(
        self, waiting: Sequence[EngineSession], sessions: Collection[EngineSession], budget: int
    ) -> list[Work]:
        """What the next forward prefills.

        Args:
            waiting: sessions to be prefilled, first come, first served.
            sessions: all.
            budget: most rows.
        """
        if not waiting:
            return []
        let_in = self._let_in(waiting, sessions)
        budget = min(budget, self._max_prefill_rows)
        writing: set[PageName] = set()
        works = []
        for session in waiting:
            share = min(session.num_missing_rows, budget)
            if session not in let_in or not share:
                continue
            pages = self._pages_from(session)
            if not writing.isdisjoint(pages[:1]):
                continue  # the next step finds this page ready
            page_rows = self._model.cache.page_rows
            num_pages = -(-(session.num_rows % page_rows + share) // page_rows)
            writing.update(pages[:num_pages])
            budget -= share
            works.append(prefill_work(session, share))
        return works

    def _let_in(
        self, waiting: Sequence[EngineSession], sessions: Collection[EngineSession]
    ) -> set[EngineSession]:
        """The waiting sessions that may write rows: those that have some, then the oldest."""
        let_in = {session for session in waiting if session.num_rows}
        for session in let_in:
            self._adopt(session)
        running = [s for s in sessions if s.num_rows and not s.finish]
        reserved = sum(self._num_reserved(session) for session in running)
        for session in sorted(waiting, key=lambda s: s.age):
            if session in let_in:
                continue
            self._adopt(session)
            num_wanted = self._in_pages(session.num_missing_rows)
            if (running or let_in) and reserved + num_wanted > self._model.num_free_rows:
                self._num_reused_rows -= session.num_rows  # they only waited
                self._release(session)
                break  # a younger one with a shorter prompt would keep it waiting for ever
            reserved += num_wanted + HEADROOM_ROWS
            let_in.add(session)
        return let_in

    def _num_reserved(self, session: EngineSession) -> int:
        """Rows that a session with rows will want before long."""
        if session.is_prefilled:
            return self._in_pages(min(HEADROOM_ROWS, max(0, session.max_depth) + 1))
        return self._in_pages(session.num_missing_rows) + HEADROOM_ROWS

    def _in_pages(self, num_rows: int) -> int:
        page_rows = self._model.cache.page_rows
        return -(-num_rows // page_rows) * page_rows

    def _adopt(self, session: EngineSession) -> None:
        """Begin with what others have computed; the last token's row is never among it."""
        names = session.page_names(len(session.token_ids) - 1)
        num_rows = self._model.adopt_prefix(session.number, names)
        session.num_rows += num_rows
        self._num_reused_rows += num_rows

    def _pages_from(self, session: EngineSession) -> list[PageName]:
        """Names of the pages that the session has yet to write, or is in the middle of."""
        names = session.page_names(len(session.token_ids))
        return names[session.num_rows // self._model.cache.page_rows :]

    def _release(self, session: EngineSession) -> None:
        """Drop a session's rows; it waits with its committed tokens."""
        self._model.drop_sequence(session.number)
        self.open(session)
        session.forget_rows()

    # --- forwards --------------------------------------------------------------------------------

    def forward(self, works: list[Work], sessions: Collection[EngineSession]) -> Forwarded:
        """One forward for as many works as the cache can take; the others give way."""
        done = Forwarded(works)
        while done.works:
            try:
                done.choices = self._model.choose([work.rows for work in done.works])
            except OutOfCache as error:
                self._shrink(done, sessions, error)
            except ModelError:
                self._forward_alone(done)
                break
            else:
                break
        return done

    def _shrink(
        self, done: Forwarded, sessions: Collection[EngineSession], error: OutOfCache
    ) -> None:
        """Bring less: first no trees, then without the youngest session that has or wants rows."""
        if any(work.num_tree_rows for work in done.works):
            done.works = [plain_work(work) for work in done.works]
            return
        wanting = [work.session for work in done.works]
        holding = [s for s in sessions if s.num_rows and not s.finish]
        youngest = max((*wanting, *holding), key=lambda s: s.age)
        done.works = [work for work in done.works if work.session is not youngest]
        if not done.works and all(session is youngest for session in holding):
            text = f"the engine cannot compute this session even alone: {error}"
            done.failures.append(SessionFailed(youngest.number, OUT_OF_CACHE, text))
        elif youngest.num_rows:
            self._preempt(done, youngest)

    def _preempt(self, done: Forwarded, session: EngineSession) -> None:
        self._release(session)
        done.preempted.append(session)

    def _forward_alone(self, done: Forwarded) -> None:
        """One forward per work, so that only the session that the model cannot serve is lost."""
        works, done.works = done.works, []
        choices: list[TokenIds] = []
        for work in works:
            number = work.session.number
            if self._model.num_tail_rows(number):
                self._model.compact(number, ())
            if self._model.num_prefix_rows(number) != work.session.num_rows:
                self._preempt(done, work.session)  # what the failed step wrote is not built upon
                continue
            try:
                choices += self._model.choose([work.rows])
            except OutOfCache:
                continue  # another step, with fewer others, may have room
            except ModelError as error:
                done.failures.append(SessionFailed(number, "model_error", str(error)))
            else:
                done.works.append(work)
        done.choices = choices
