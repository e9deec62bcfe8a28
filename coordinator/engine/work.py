"""What one session brings to one forward."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coordinator.engine.messages import EntryResult, SourceSeen, StepEntry, VerificationBatch
from coordinator.engine.packing import Outcome, plain, prefill_rows, tree_rows
from coordinator.engine.session import EngineSession
from specedge_p2p.lm.ports import Rows
from specedge_p2p.tree.binding import BoundRows
from specedge_p2p.tree.ngram import NgramGuess

NO_GUESS = NgramGuess()


@dataclass(frozen=True, slots=True)
class Work:
    """What one session brings to a forward: a bound tree, or a chunk of the prompt (bound None)."""

    session: EngineSession
    rows: Rows
    entry: StepEntry | None = None
    bound: BoundRows | None = None
    guess: NgramGuess = NO_GUESS

    @property
    def must(self) -> bool:
        return self.entry is not None and self.entry.must

    @property
    def num_tree_rows(self) -> int:
        return 0 if self.bound is None else len(self.bound) - 1


def prefill_work(session: EngineSession, share: int) -> Work:
    first = session.num_rows
    chunk = session.token_ids[first : first + share]
    is_last = first + share == len(session.token_ids)
    return Work(session, prefill_rows(session.number, chunk, first, is_last))


def tree_work(session: EngineSession, entry: StepEntry, batch: VerificationBatch) -> Work:
    guess = session.guess() if batch.ngram_hit_rates else NO_GUESS
    bound = session.bind(entry, batch, guess)
    return Work(session, tree_rows(session.number, session.num_rows, bound), entry, bound, guess)


def rebound(work: Work, batch: VerificationBatch) -> Work:
    """The same session bound to what is known by now; its rows are old until `with_rows`."""
    if work.entry is None:
        return work
    return replace(work, bound=work.session.bind(work.entry, batch, work.guess))


def with_rows(work: Work) -> Work:
    """The rows of what is bound."""
    if work.bound is None:
        return work
    rows = tree_rows(work.session.number, work.session.num_rows, work.bound)
    return replace(work, rows=rows)


def take_fewer(trees: Sequence[Work], max_sessions: int) -> list[Work]:
    """Those that must be in the step, then those with rows to verify, then the others.

    Those that must stand in their order. Of the rest whoever was verified longest ago goes first,
    and their order only decides between those of the same step: the plan was made before the last
    step had chosen, and waiting is what makes a tree deep.

    Args:
        trees: bound sessions.
        max_sessions: how many may stay, 0 for all.
    """
    if not max_sessions:
        return list(trees)
    order = sorted(trees, key=lambda work: (not work.must, not work.num_tree_rows, _turn(work)))
    return order[:max_sessions]


def _turn(work: Work) -> int:
    return 0 if work.must else work.session.last_step


def plain_work(work: Work) -> Work:
    if work.bound is None:
        return work
    return with_rows(replace(work, bound=plain(work.bound)))


def result_of(
    work: Work, outcome: Outcome, from_position: int, seen: list[SourceSeen]
) -> EntryResult:
    guess, bound = work.guess, work.bound
    return EntryResult(
        session=work.session.number,
        from_position=from_position,
        token_ids=list(outcome.token_ids),
        sources=list(outcome.sources),
        num_rows=work.num_tree_rows,
        num_source_rows=0 if bound is None else sum(source > 0 for source in bound.sources),
        ngram_order=guess.order,
        ngram_hit=bool(guess.token_ids) and guess.token_ids[0] == outcome.token_ids[0],
        finish=outcome.finish,
        num_own_rows=0 if bound is None else _num_own_rows(bound),
        seen=seen,
    )


def _num_own_rows(bound: BoundRows) -> int:
    """Rows that nobody but the engine's own draft model proposed."""
    rows = zip(bound.is_own, bound.sources, bound.is_ngram, strict=True)
    return sum(is_own and not source and not is_ngram for is_own, source, is_ngram in rows)
