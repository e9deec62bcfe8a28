"""The figures of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from coordinator.engine.messages import EntryResult, StepDone
from coordinator.sessions import Committed, Session


@dataclass(frozen=True, slots=True)
class Result:
    """What a run measured between its warm-up and its end.

    Args:
        tokens_per_s: committed tokens per second.
        full_tokens_per_s: the same for a house that is always full: every step's time counts by
            the share of places whose session was decoding in it, so that neither prompts nor the
            step that is lost between two sessions of a closed loop count.
        itl_s: mean time per token of a decoding session.
        gap95_s: 95 of 100 gaps between two commits of a session are shorter.
        tokens_per_engine_ms: decoded tokens per millisecond of engine time.
        rows_per_token: tree rows verified per decoded token.
        levels_per_step: the engine's own.
        sent_per_token: vertices that nodes sent per committed token.
        share_by_node, share_by_own, share_by_ngram: of the decoded tokens, by the first of these
            who had guessed them.
        idle_share: of the time in which the engine had nothing to do.
        simulated_s: length of the measured window.
        num_tokens: committed in it.
    """

    tokens_per_s: float
    full_tokens_per_s: float
    itl_s: float
    gap95_s: float
    tokens_per_engine_ms: float
    rows_per_token: float
    levels_per_step: float
    sent_per_token: float
    share_by_node: float
    share_by_ngram: float
    share_by_own: float
    idle_share: float
    simulated_s: float
    num_tokens: int


@dataclass(slots=True)
class Tally:
    """Counts while `is_open`.

    Args:
        num_places: sessions that decode in a step when the house is full.
    """

    num_places: int
    is_open: bool = False
    started_s: float = 0.0
    num_tokens: int = 0
    num_decoded: int = 0
    num_rows: int = 0
    num_levels: int = 0
    num_steps: int = 0
    num_by_node: int = 0
    num_by_ngram: int = 0
    num_by_own: int = 0
    engine_s: float = 0.0
    place_s: float = 0.0
    session_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    last_commit_s: dict[int, float] = field(default_factory=dict)

    def begin(self, now_s: float) -> None:
        self.is_open, self.started_s = True, now_s

    def commit(self, session: Session, committed: Committed, now_s: float) -> None:
        last_s = self.last_commit_s.get(session.number)
        self.last_commit_s[session.number] = now_s
        if session.finish is not None:
            del self.last_commit_s[session.number]
        if not self.is_open:
            return
        self.num_tokens += len(committed.token_ids)
        if last_s is not None:
            self.gaps_s.append(now_s - last_s)

    def step(self, step: StepDone, decoded: Sequence[EntryResult]) -> None:
        if not self.is_open:
            return
        time_s = step.ended_s - step.started_s
        self.engine_s += time_s
        self.place_s += time_s * len(decoded) / self.num_places
        self.num_steps += 1
        self.num_levels += step.num_levels
        for result in decoded:
            self.num_decoded += len(result.token_ids)
            self.num_rows += result.num_rows
            for source in result.sources:
                self.num_by_node += source.source > 0
                self.num_by_ngram += source.ngram and not source.source and not source.own
                self.num_by_own += source.own and not source.source

    def result(self, now_s: float, num_proposed: int) -> Result:
        """`num_proposed`: vertices that arrived since the beginning of the window."""
        time_s = now_s - self.started_s
        decoded = max(self.num_decoded, 1)
        return Result(
            tokens_per_s=self.num_tokens / time_s,
            full_tokens_per_s=self.num_decoded / self.place_s,
            itl_s=sum(self.gaps_s) / decoded,
            gap95_s=float(np.percentile(self.gaps_s, 95)) if self.gaps_s else 0.0,
            tokens_per_engine_ms=self.num_decoded / (1000.0 * self.engine_s),
            rows_per_token=self.num_rows / decoded,
            levels_per_step=self.num_levels / max(self.num_steps, 1),
            sent_per_token=num_proposed / max(self.num_tokens, 1),
            share_by_node=self.num_by_node / decoded,
            share_by_ngram=self.num_by_ngram / decoded,
            share_by_own=self.num_by_own / decoded,
            idle_share=max(0.0, 1.0 - self.engine_s / time_s),
            simulated_s=time_s,
            num_tokens=self.num_tokens,
        )
