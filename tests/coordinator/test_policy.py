"""What the scheduler is told and what it learns."""

from coordinator.engine.messages import NGRAM_ORDERS, EntryResult, Ready, SourceFactor, StepDone
from coordinator.policy import FORGET_STEPS, MAX_IN_FLIGHT, StepPolicy
from coordinator.scheduler.plan import PlanLimits
from coordinator.sessions import Session
from tests.support.results import session

READY = Ready("toy", 32, 4096, [1], "float64", bytes(16), step_time_s=0.04, row_time_s=0.001)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def no_sources(_: Session) -> list[SourceFactor]:
    return []


def step(num_tokens: int, seconds: float, order: int = 0, *, hit: bool = False) -> StepDone:
    result = EntryResult(1, 10, [4] * num_tokens, [], 1, 1, ngram_order=order, ngram_hit=hit)
    return StepDone(1, 100.0, 100.0 + seconds, 0.0, 3, [result])


def test_every_live_session_is_in_every_step_with_its_sources() -> None:
    policy = StepPolicy(PlanLimits(max_rows=8, max_sessions=64, prefill_tokens=100), Clock())
    policy.calibrate(READY)
    sessions = [session(number) for number in (1, 2, 3)]
    given = {s.number: [SourceFactor(10 + s.number, 1.0)] for s in sessions}
    batch = policy.plan(sessions, lambda s: given[s.number])
    assert {e.session: e.sources for e in batch.entries} == given
    assert batch.prefill_tokens == 100  # nothing streams yet
    assert policy.plan(sessions, no_sources).step_no == batch.step_no + 1


def test_where_not_all_fit_nobody_waits_for_long() -> None:
    clock = Clock()
    policy = StepPolicy(PlanLimits(max_rows=8, max_sessions=2, prefill_tokens=100), clock)
    policy.calibrate(READY)
    sessions = [session(number) for number in range(1, 6)]
    seen: list[int] = []
    for _ in range(3):
        clock.now_s += 0.04
        seen += [entry.session for entry in policy.plan(sessions, no_sources).entries]
    assert set(seen) == {1, 2, 3, 4, 5}


def test_the_price_of_a_row_follows_what_was_committed() -> None:
    policy = StepPolicy(PlanLimits(), Clock())
    policy.calibrate(READY)
    sessions = [session(1)]
    cold = policy.plan(sessions, no_sources).row_price
    assert cold == 0.001 / 0.04  # one token per step is believed
    for _ in range(200):
        policy.learn(step(4, 0.04), 4)
    warm = policy.plan(sessions, no_sources).row_price
    assert cold < warm < 4.01 * cold
    assert warm > 3 * cold


def test_the_rates_of_the_ngram_guess_are_learned_per_order() -> None:
    policy = StepPolicy(PlanLimits(), Clock())
    policy.calibrate(READY)
    before = policy.plan([session(1)], no_sources).ngram_hit_rates
    for _ in range(50):
        policy.learn(step(1, 0.04, NGRAM_ORDERS[0], hit=False), 1)
        policy.learn(step(1, 0.04, NGRAM_ORDERS[1], hit=True), 1)
    after = policy.plan([session(1)], no_sources).ngram_hit_rates
    assert after[0] < before[0]
    assert after[1] > before[1]
    assert after[2] == before[2]


def test_sessions_that_left_are_forgotten() -> None:
    policy = StepPolicy(PlanLimits(), Clock())
    policy.calibrate(READY)
    for number in range(1, 4 * FORGET_STEPS):
        policy.plan([session(number)], no_sources)
        assert len(policy._sessions) == len(policy._queues) <= 2 * FORGET_STEPS
        assert len(policy._in_flight) <= MAX_IN_FLIGHT
