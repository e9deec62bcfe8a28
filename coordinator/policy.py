"""What the scheduler has learned so far, and the next plan made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coordinator.engine.messages import Ready, SourceFactor, StepDone, VerificationBatch
from coordinator.scheduler.costs import (
    Costs,
    LevelCosts,
    LevelTimes,
    LevelWorth,
    NgramRates,
    StepCosts,
    StepShape,
    StepTimes,
    Throughput,
)
from coordinator.scheduler.factors import Factor, Factors
from coordinator.scheduler.plan import PlanLimits, SessionState, plan
from coordinator.scheduler.queues import Queues
from coordinator.sessions import Session

MAX_IN_FLIGHT = 8
"""Steps whose results are awaited; an engine queues fewer."""
_OWN = 0
"""The engine's own draft model among the sources of a SourceSeen."""


@dataclass(slots=True)
class _Progress:
    """What is known of a session.

    Args:
        num_prompt_left: tokens to prefill by the results that were seen.
        served_step: the last step that is known to have served it, or the last before it came.
        served_s: when that was known, or when the session was opened.
    """

    num_prompt_left: int
    served_step: int
    served_s: float


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step whose result is not known yet.

    Args:
        planned_s: when it was planned.
        surely: the sessions that it must serve.
        likely: the sessions that it is expected to serve, those included.
        shares: prompt tokens by session, in the order in which the engine hands them out.
    """

    planned_s: float
    surely: frozenset[int]
    likely: frozenset[int]
    shares: dict[int, int]


class StepPolicy:
    """Keeps the measured costs and who was served; the decision itself is scheduler.plan.

    Args:
        limits: see PlanLimits.
        clock: monotonic seconds.
        factors: where the engine's own draft model stands beside those of the nodes.
    """

    def __init__(
        self,
        limits: PlanLimits,
        clock: Callable[[], float],
        factors: Factors | None = None,
    ) -> None:
        self._limits, self._clock = limits, clock
        self._factors = factors or Factors()
        self._step_times = StepTimes(StepCosts(0.0, 0.0))
        self._level_times: LevelTimes | None = None
        self._throughput = Throughput(initial_per_s=0.0)
        self._ngram_rates = NgramRates()
        self._shape = StepShape()
        self._own_factor = Factor()
        self._level_worth = LevelWorth()
        self._own_fingerprint = b""
        self._queues = Queues()
        self._sessions: dict[int, _Progress] = {}
        self._in_flight: dict[int, _InFlight] = {}
        self._step_no = 0

    @property
    def costs(self) -> Costs:
        """What is believed at this moment."""
        levels = self._level_times
        return Costs(
            step=self._step_times.costs,
            tokens_per_s=self._throughput.tokens_per_s,
            ngram_hit_rates=self._ngram_rates.rates,
            level=None if levels is None else levels.costs,
            level_worth=self._level_worth.value,
            own_factor=self._own_factor.value,
            own_draft=0 if levels is None else self._factors.draft(self._own_fingerprint),
            own_quality=0.0 if levels is None else self._factors.quality(self._own_fingerprint),
            rows_per_session=self._shape.rows_per_session,
            context_per_session=self._shape.context_per_session,
        )

    def calibrate(self, ready: Ready) -> None:
        """An engine begins, with a measurement of its device and without any session."""
        self._step_times = StepTimes(StepCosts(ready.step_time_s, ready.row_time_s))
        level = LevelCosts(ready.level_time_s, ready.level_row_time_s)
        self._level_times = LevelTimes(level) if ready.level_time_s > 0 else None
        self._own_fingerprint = ready.draft_fingerprint
        self._throughput = Throughput(initial_per_s=1.0 / max(ready.step_time_s, 1e-6))
        self._sessions.clear()
        self._in_flight.clear()

    # --- plan ------------------------------------------------------------------------------------

    def plan(
        self,
        sessions: Sequence[Session],
        sources: Callable[[Session], list[SourceFactor]],
    ) -> VerificationBatch:
        self._step_no += 1
        now, costs = self._clock(), self.costs
        states = [self._state(session, costs, now) for session in sessions]
        by_number = {session.number: session for session in sessions}
        batch = plan(
            now,
            states,
            costs,
            self._limits,
            self._step_no,
            lambda number: sources(by_number[number]),
        )
        self._in_flight[self._step_no] = _expectation(batch, states, now)
        self._in_flight.pop(self._step_no - MAX_IN_FLIGHT, None)
        return batch

    def _state(self, session: Session, costs: Costs, now: float) -> SessionState:
        number = session.number
        known = self._sessions.get(number)
        if known is None:
            num_left = len(session.token_ids)
            known = _Progress(num_left, self._step_no - 1, session.opened_s)
            self._sessions[number] = known
            self._queues.join(number, costs.step.row_time_s * num_left, now)
        last_step, last_s, num_left = known.served_step, known.served_s, known.num_prompt_left
        for step_no, step in self._in_flight.items():
            if number in step.likely:
                last_s = max(last_s, step.planned_s)
                if number in step.surely:
                    last_step = max(last_step, step_no)
            if num_left:
                num_left -= step.shares.get(number, 0)
        return SessionState(
            session=number,
            last_planned_s=last_s,
            num_prompt_left=max(0, num_left),
            num_tokens=session.num_tokens,
            opened_s=session.opened_s,
            queue=self._queues.queue(number, now),
            last_step=last_step,
        )

    def forget(self, session: Session) -> None:
        """A session has ended."""
        self._sessions.pop(session.number, None)
        self._queues.leave(session.number)

    # --- learn -----------------------------------------------------------------------------------

    def learn(self, step: StepDone, num_tokens: int) -> None:
        """Take a step's result; `num_tokens` of it were committed over all sessions."""
        self._learn_times(step, num_tokens)
        if not step.num_levels:
            self._own_factor.fade()
        for result in step.results:
            self._ngram_rates.observe(result.ngram_order, is_hit=result.ngram_hit)
            for seen in result.seen:
                if seen.source == _OWN:
                    self._own_factor.observe(seen.predicted, is_hit=seen.is_hit)
                    self._factors.observe_own(self._own_fingerprint, is_hit=seen.is_hit)
        self._learn_service(step)

    def _learn_times(self, step: StepDone, num_tokens: int) -> None:
        step_s = step.ended_s - step.started_s
        # Prompts take their time whatever is guessed: it is not part of the price of time.
        prompts_s = self._step_times.costs.row_time_s * step.num_prefill_rows
        self._throughput.observe(num_tokens, step_s - prompts_s)
        if not step.num_forward_rows:
            return
        self._step_times.observe(
            step.num_forward_rows, len(step.results), step.num_context_rows, step_s - step.level_s
        )
        num_decoding = sum(1 for result in step.results if result.token_ids)
        self._shape.observe(
            step.num_forward_rows - step.num_prefill_rows, step.num_context_rows, num_decoding
        )
        if self._level_times is None:
            return
        if step.num_levels:
            self._level_times.observe(step.num_levels, step.num_level_rows, step.level_s)
            self._level_worth.observe(step.level_mass, _num_by_levels_alone(step))
        else:
            self._level_times.fade()
            self._level_worth.fade()

    def _learn_service(self, step: StepDone) -> None:
        now, costs = self._clock(), self._step_times.costs
        planned = self._in_flight.pop(step.step_no, None)
        num_prefilled = step.num_prefill_rows
        shares: dict[int, int] = {}
        for number, share in planned.shares.items() if planned is not None else ():
            shares[number] = min(share, num_prefilled)
            num_prefilled -= shares[number]
        for result in step.results:
            known = self._sessions.get(result.session)
            if known is None:
                continue
            known.served_step, known.served_s = max(known.served_step, step.step_no), now
            share = shares.get(result.session, 0)
            known.num_prompt_left = 0 if result.token_ids else max(0, known.num_prompt_left - share)
            cost_s = costs.step_time_s / len(step.results)
            cost_s += costs.row_time_s * (share + result.num_rows)
            self._queues.charge(result.session, cost_s, now)
        for lost in step.preempted:
            if known := self._sessions.get(lost.session):
                known.num_prompt_left = lost.num_tokens


def _num_by_levels_alone(step: StepDone) -> int:
    sources = (source for result in step.results for source in result.sources)
    return sum(1 for by in sources if by.own and not by.ngram and not by.source)


def _expectation(batch: VerificationBatch, states: Sequence[SessionState], now: float) -> _InFlight:
    num_left = {state.session: state.num_prompt_left for state in states if state.num_prompt_left}
    decoding = [entry.session for entry in batch.entries if entry.session not in num_left]
    budget = batch.prefill_tokens
    shares: dict[int, int] = {}
    for entry in batch.entries:
        share = min(budget, num_left.get(entry.session, 0))
        if share:
            shares[entry.session] = share
            budget -= share
    return _InFlight(
        planned_s=now,
        surely=frozenset(entry.session for entry in batch.entries if entry.must),
        likely=frozenset(decoding[: batch.max_sessions or len(decoding)]) | shares.keys(),
        shares=shares,
    )
