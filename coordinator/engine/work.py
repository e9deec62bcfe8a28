"""What one session brings to one forward."""

from dataclasses import dataclass, replace

from coordinator.engine.messages import EntryResult, StepEntry, VerificationBatch
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
    bound: BoundRows | None = None
    guess: NgramGuess = NO_GUESS

    @property
    def num_tree_rows(self) -> int:
        return 0 if self.bound is None else len(self.bound.token_ids) - 1


def prefill_work(session: EngineSession, share: int) -> Work:
    first = session.num_rows
    chunk = session.token_ids[first : first + share]
    is_last = first + share == len(session.token_ids)
    return Work(session, prefill_rows(session.number, chunk, first, is_last))


def tree_work(session: EngineSession, entry: StepEntry, batch: VerificationBatch) -> Work:
    guess = session.guess() if batch.ngram_hit_rates else NO_GUESS
    bound = session.bind(entry, batch, guess)
    return Work(session, tree_rows(session.number, session.num_rows, bound), bound, guess)


def plain_work(work: Work) -> Work:
    if work.bound is None:
        return work
    bound = plain(work.bound)
    rows = tree_rows(work.session.number, work.session.num_rows, bound)
    return replace(work, rows=rows, bound=bound)


def result_of(work: Work, outcome: Outcome, from_position: int) -> EntryResult:
    guess = work.guess
    return EntryResult(
        session=work.session.number,
        from_position=from_position,
        token_ids=list(outcome.token_ids),
        sources=list(outcome.sources),
        num_rows=work.num_tree_rows,
        num_source_rows=0 if work.bound is None else int((work.bound.sources > 0).sum()),
        ngram_order=guess.order,
        ngram_hit=bool(guess.token_ids) and guess.token_ids[0] == outcome.token_ids[0],
        finish=outcome.finish,
    )
