"""What the engine verifies in its next step.

Every live session is in every step, with as many rows as cover their price. Where a step is capped,
more sessions are named than it takes and the engine prefers those with something to verify when the
step starts, the oldest first (docs/scheduling.md says why): queues decide whose prompt is read
first, and who is named where more wait than a batch names. Those that cannot wait any longer are
marked, so that nobody is passed over for ever: a session is served again at the latest
ceil(sessions / cap) + 2 steps after it was served last, whatever the engine prefers.

Why that holds: each session has a deadline, and as many of the earliest are marked as must be
served now for the later steps to have room for all others (earliest deadline first; Liu and
Layland, 1973). A served session's next deadline lies far enough ahead for everybody to be served
once before it; the two further steps make up for the step in flight, whose choice is not known yet,
and leave a choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from coordinator.engine.messages import LevelTerms, SourceFactor, StepEntry, VerificationBatch
from coordinator.scheduler.costs import Costs

LEAST_PREFILL_TOKENS = 8
"""Prompts progress by so much in every step, whatever that costs the streams."""
CANDIDATES_PER_PLACE = 4
SLACK_STEPS = 2
_TINY_S = 1e-12

_SESSION = attrgetter("session")
_WAITING = attrgetter("last_planned_s")
_LAST_STEP = attrgetter("last_step")
_OPENED = attrgetter("opened_s")
_QUEUE = attrgetter("queue")


Sources = Callable[[int], list[SourceFactor]]
"""The nodes that draft for a session, with the factor of each; asked for those in the step only."""


def _nobody(session: int) -> list[SourceFactor]:
    return []


class SessionState(msgspec.Struct, frozen=True):
    """A live session as the plan sees it. Of this kind because thousands are made for every step.

    Args:
        session: its number at the engine.
        last_planned_s: when it was last served or is expected to have been, or else when it began.
        num_prompt_left: tokens that still have to be prefilled.
        num_tokens: tokens committed after the prompt.
        opened_s: when it began.
        queue: 0 goes first; see queues.py.
        last_step: the last step that surely served it, or else the last before it came.
    """

    session: int
    last_planned_s: float
    num_prompt_left: int = 0
    num_tokens: int = 0
    opened_s: float = 0.0
    queue: int = 0
    last_step: int = 0


@dataclass(frozen=True, slots=True)
class FixedTree:
    """A tree that the engine drafts whatever it brings: `width` vertices in each of its levels."""

    depth: int
    width: int

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1:
            raise ValueError("a tree has at least one level and one vertex in each")


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """What bounds a step.

    Args:
        max_rows: most tree rows of one session.
        max_sessions: most decoding sessions that a batch names, and most with prompts to prefill.
        prefill_tokens: most prompt tokens that one step may prefill.
        has_ngram: whether the engine adds its own n-gram guesses.
        max_batch: most sessions that one step decodes, 0 for all.
        tree: the engine's own tree where it shall not depend on what it brings.
        max_itl_s: a session that waits longer goes before those with more to verify.
        prefill_share: by how much, of its own time, prompts may lengthen a step that decodes.
        max_levels: most levels that the engine drafts in one step, 0 to switch it off.
        level_width: most vertices of one session that such a level expands.
        has_queues: read short prompts first, and name short sessions where more decode than a
            batch names; otherwise first come, first served.
    """

    max_rows: int = 32
    max_sessions: int = 256
    prefill_tokens: int = 512
    has_ngram: bool = True
    max_batch: int = 0
    tree: FixedTree | None = None
    max_itl_s: float = 1.0
    prefill_share: float = 0.5
    max_levels: int = 3
    level_width: int = 4
    has_queues: bool = True

    @property
    def cap(self) -> int:
        """Most sessions that one step decodes."""
        return min(self.max_batch or self.max_sessions, self.max_sessions)


def plan(
    now: float,
    sessions: Sequence[SessionState],
    costs: Costs,
    limits: PlanLimits,
    step_no: int,
    sources: Sources = _nobody,
) -> VerificationBatch:
    """Decide a step; the engine binds its rows when it starts.

    Entries stand in order of priority: first who must be served, then the other decoding sessions,
    among which the engine chooses, then those whose prompts share `prefill_tokens`.

    Args:
        now: the time that `last_planned_s` is compared with.
        sessions: all live sessions.
        costs: what steps cost and bring.
        limits: see PlanLimits.
        step_no: number of the step.
        sources: see Sources.
    """
    decoding = [state for state in sessions if not state.num_prompt_left]
    is_reading = len(decoding) < len(sessions)
    prefilling = [state for state in sessions if state.num_prompt_left] if is_reading else []
    num_streams = min(len(decoding), limits.cap)
    musts: list[SessionState] = []
    if len(decoding) > limits.cap:
        musts, decoding = _candidates(now, decoding, limits, step_no)
    num_musts = len(musts)
    named = [state.session for state in musts + decoding + _first_prompts(prefilling, limits)]
    has_levels = costs.level is not None
    return VerificationBatch(
        step_no=step_no,
        entries=[
            _entry(session, sources, limits, has_levels, must=place < num_musts)
            for place, session in enumerate(named)
        ],
        row_price=costs.row_price,
        ngram_hit_rates=list(costs.ngram_hit_rates) if limits.has_ngram else [],
        prefill_tokens=_prefill_tokens(num_streams, costs, limits),
        max_sessions=limits.cap if len(sessions) > limits.cap else 0,
        levels=_levels(costs, limits),
    )


def _entry(
    session: int, sources: Sources, limits: PlanLimits, has_levels: bool, *, must: bool
) -> StepEntry:
    """Nodes on trial get fewer rows, but not at the cost of what the engine drafts by itself."""
    max_rows, known = limits.max_rows, sources(session)
    if known and not has_levels and known[0].max_rows:
        on_trial = [source.max_rows for source in known]
        if all(on_trial):
            max_rows = min(max_rows, max(on_trial))
    return StepEntry(session, max_rows, known, must)


# --- a capped step -------------------------------------------------------------------------------


def _candidates(
    now: float, decoding: Sequence[SessionState], limits: PlanLimits, step_no: int
) -> tuple[list[SessionState], list[SessionState]]:
    """Those who must be served, and the others that the engine may choose from."""
    cap = limits.cap
    waiting = sorted(decoding, key=_SESSION)
    waiting.sort(key=_WAITING)  # sorts are stable, and by one attribute they are quick
    by_deadline = sorted(waiting, key=_LAST_STEP)
    musts = by_deadline[: _num_due(by_deadline, cap, step_no)]
    marked = {state.session for state in musts}
    late = [s for s in waiting[:cap] if now - s.last_planned_s > limits.max_itl_s]
    musts += [s for s in late if s.session not in marked][: cap - len(musts)]
    marked = {state.session for state in musts}
    others = [state for state in waiting if state.session not in marked]
    if limits.has_queues:
        others.sort(key=_QUEUE)
    num_named = min(CANDIDATES_PER_PLACE * cap, limits.max_sessions)
    return musts, others[: num_named - len(musts)]


def _num_due(by_deadline: Sequence[SessionState], cap: int, step_no: int) -> int:
    """How many of the earliest deadlines must be met now for all others to be met in time."""
    num_steps = -(-len(by_deadline) // cap) + SLACK_STEPS
    num_due = 0
    for num_before, state in enumerate(by_deadline, start=1):
        num_later_steps = max(0, state.last_step + num_steps - step_no)
        num_due = max(num_due, num_before - cap * num_later_steps)
    return min(num_due, cap)


# --- prompts -------------------------------------------------------------------------------------


def _first_prompts(prefilling: list[SessionState], limits: PlanLimits) -> list[SessionState]:
    prefilling.sort(key=_OPENED)
    if limits.has_queues:
        prefilling.sort(key=_QUEUE)
    return prefilling[: limits.max_sessions]


def _prefill_tokens(num_streams: int, costs: Costs, limits: PlanLimits) -> int:
    """As many prompt tokens as lengthen the step of the streams by the allowed share."""
    allowed_s = limits.prefill_share * costs.decode_time_s(num_streams)
    allowed_s -= costs.step.sequence_time_s
    if not num_streams or limits.prefill_tokens * costs.step.row_time_s <= allowed_s:
        return limits.prefill_tokens
    least = min(LEAST_PREFILL_TOKENS, limits.prefill_tokens)
    return max(least, int(allowed_s / max(costs.step.row_time_s, _TINY_S)))


# --- the engine's own drafting -------------------------------------------------------------------


def _levels(costs: Costs, limits: PlanLimits) -> LevelTerms | None:
    if costs.level is None or not limits.max_levels:
        return None
    tree = limits.tree
    return LevelTerms(
        level_time_s=costs.level.level_time_s,
        level_row_time_s=costs.level.level_row_time_s,
        row_time_s=costs.step.row_time_s,
        tokens_per_s=costs.tokens_per_s,
        max_levels=limits.max_levels if tree is None else tree.depth,
        width=limits.level_width if tree is None else tree.width,
        factor=costs.own_factor,
        worth=costs.level_worth,
        is_fixed=tree is not None,
        draft=costs.own_draft,
        quality=costs.own_quality,
    )
