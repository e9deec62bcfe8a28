import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.messages import SourceFactor, StepEntry
from coordinator.scheduler.costs import Costs, StepCosts
from coordinator.scheduler.plan import PlanLimits, SessionState, plan

COSTS = Costs(StepCosts(0.04, 0.0005), 100.0, (0.6, 0.5, 0.3))


def test_every_live_session_is_in_the_step() -> None:
    factor = SourceFactor(11, 0.9)
    sessions = [SessionState(1, (factor,), 5.0), SessionState(2, (), 3.0)]
    batch = plan(9.0, sessions, COSTS, PlanLimits(max_rows=8, prefill_tokens=300), 7)
    assert batch.step_no == 7
    assert batch.entries == [StepEntry(1, 8, [factor]), StepEntry(2, 8, [])]
    assert batch.row_price == pytest.approx(0.05)
    assert batch.ngram_hit_rates == [0.6, 0.5, 0.3]
    assert batch.max_sessions == 0


def test_law3_critical_path_is_free_of_nodes() -> None:
    """A session without any node is planned exactly like the others, and nothing is waited for."""
    with_nodes = [SessionState(n, (SourceFactor(n, 1.0),), 0.0) for n in range(1, 5)]
    without = [SessionState(n, (), 0.0) for n in range(1, 5)]
    planned = [plan(1.0, sessions, COSTS, PlanLimits(), 1) for sessions in (with_nodes, without)]
    assert [[e.session for e in batch.entries] for batch in planned] == [[1, 2, 3, 4]] * 2


def test_nothing_live_makes_an_empty_step() -> None:
    assert plan(1.0, [], COSTS, PlanLimits(), 1).entries == []


@given(st.integers(1, 20), st.integers(1, 8))
def test_law7_bounded_steps_and_waiting(num_sessions: int, cap: int) -> None:
    """At a cap the longest waiting go first: nobody waits longer than a full turn."""
    last = dict.fromkeys(range(num_sessions), 0.0)
    longest = -(-num_sessions // cap)
    for step in range(1, 4 * longest):
        states = [SessionState(n, (), at) for n, at in last.items()]
        batch = plan(float(step), states, COSTS, PlanLimits(max_sessions=cap), step)
        assert len(batch.entries) == min(cap, num_sessions)
        for entry in batch.entries:
            last[entry.session] = float(step)
        assert all(step - at <= longest for at in last.values())
