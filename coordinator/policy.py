"""What the scheduler has learned so far, and the next plan made of it."""

from collections.abc import Callable, Sequence

from coordinator.engine.messages import Ready, SourceFactor, StepDone, VerificationBatch
from coordinator.scheduler.costs import Costs, NgramRates, StepCosts, Throughput
from coordinator.scheduler.plan import PlanLimits, SessionState, plan
from coordinator.sessions import Session


class StepPolicy:
    """Keeps the measured costs; the decision itself is scheduler.plan."""

    def __init__(self, limits: PlanLimits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._step_costs = StepCosts(step_time_s=0.0, row_time_s=0.0)
        self._throughput = Throughput(initial_per_s=0.0)
        self._ngram_rates = NgramRates()
        self._last_planned_s: dict[int, float] = {}
        self._step_no = 0

    def calibrate(self, ready: Ready) -> None:
        """Take the measurement that an engine makes of its device at the start."""
        self._step_costs = StepCosts(ready.step_time_s, ready.row_time_s)
        self._throughput = Throughput(initial_per_s=1.0 / max(ready.step_time_s, 1e-6))

    def plan(
        self,
        sessions: Sequence[Session],
        sources: Callable[[Session], list[SourceFactor]],
    ) -> VerificationBatch:
        self._step_no += 1
        now = self._clock()
        last = self._last_planned_s
        states = [
            SessionState(s.number, tuple(sources(s)), last.get(s.number, s.opened_s))
            for s in sessions
        ]
        batch = plan(now, states, self._costs(), self._limits, self._step_no)
        planned = {entry.session for entry in batch.entries}
        self._last_planned_s = {
            s.session: now if s.session in planned else s.last_planned_s for s in states
        }
        return batch

    def learn(self, step: StepDone, num_tokens: int) -> None:
        self._throughput.observe(num_tokens, step.ended_s - step.started_s)
        for result in step.results:
            self._ngram_rates.observe(result.ngram_order, is_hit=result.ngram_hit)

    def _costs(self) -> Costs:
        return Costs(self._step_costs, self._throughput.tokens_per_s, self._ngram_rates.rates)
