"""What the engine verifies in its next step.

The first policy: every live session is in every step, with as many rows as cover their price. Only
where an engine takes fewer sessions than are live do the longest waiting go first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.engine.messages import SourceFactor, StepEntry, VerificationBatch
from coordinator.scheduler.costs import Costs


@dataclass(frozen=True, slots=True)
class SessionState:
    """A live session as the plan sees it.

    Args:
        session: its number at the engine.
        sources: the nodes that draft for it, with the factor of each.
        last_planned_s: when it was last in a plan, or else when it began.
    """

    session: int
    sources: tuple[SourceFactor, ...]
    last_planned_s: float


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """What bounds a step.

    Args:
        max_rows: most tree rows of one session.
        max_sessions: most sessions in one step.
        prefill_tokens: most prompt tokens that one step may prefill.
        has_ngram: whether the engine adds its own n-gram guesses.
    """

    max_rows: int = 8
    max_sessions: int = 256
    prefill_tokens: int = 512
    has_ngram: bool = True


def plan(
    now: float,
    sessions: Sequence[SessionState],
    costs: Costs,
    limits: PlanLimits,
    step_no: int,
) -> VerificationBatch:
    """Decide a step; the engine binds its rows when it starts.

    Args:
        now: the time that `last_planned_s` is compared with.
        sessions: all live sessions.
        costs: what steps cost and bring.
        limits: see PlanLimits.
        step_no: number of the step.
    """
    chosen = sessions
    if len(sessions) > limits.max_sessions:
        waiting = sorted(sessions, key=lambda s: (s.last_planned_s - now, s.session))
        chosen = waiting[: limits.max_sessions]
    return VerificationBatch(
        step_no=step_no,
        entries=[StepEntry(s.session, limits.max_rows, list(s.sources)) for s in chosen],
        row_price=costs.row_price,
        ngram_hit_rates=list(costs.ngram_hit_rates) if limits.has_ngram else [],
        prefill_tokens=limits.prefill_tokens,
    )
