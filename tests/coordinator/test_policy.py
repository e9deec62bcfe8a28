"""What the scheduler is told and what it learns."""

from dataclasses import dataclass, field
from random import Random

import msgspec
import pytest

from coordinator.engine.messages import (
    NGRAM_ORDERS,
    EntryResult,
    Ready,
    SourceFactor,
    SourceSeen,
    StepDone,
    TokenSource,
    VerificationBatch,
)
from coordinator.policy import MAX_IN_FLIGHT, StepPolicy
from coordinator.scheduler.costs import StepCosts
from coordinator.scheduler.factors import Factors
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
    assert cold < warm < 4.05 * cold
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
    for number in range(1, 200):
        only = session(number)
        policy.plan([only], no_sources)
        assert len(policy._sessions) == len(policy._queues) == 1
        assert len(policy._in_flight) <= MAX_IN_FLIGHT
        policy.forget(only)
        policy.forget(only)
    assert len(policy._sessions) == len(policy._queues) == 0


def done(
    batch: VerificationBatch,
    prefilled: dict[int, int] | None = None,
    decoded: dict[int, int] | None = None,
    seconds: float = 0.04,
) -> StepDone:
    """A step that prefilled prompt tokens and verified rows, both by session."""
    prefilled, decoded = prefilled or {}, decoded or {}
    results = [EntryResult(n, 10, [4], [], rows, 0) for n, rows in decoded.items()]
    results += [EntryResult(n, 10, [], [], 0, 0) for n in prefilled]
    num_prefilled = sum(prefilled.values())
    return StepDone(
        batch.step_no,
        100.0,
        100.0 + seconds,
        0.0,
        num_prefilled + sum(decoded.values()) + len(decoded),
        results,
        num_prefill_rows=num_prefilled,
        num_context_rows=100 * len(decoded),
    )


def test_prompts_are_bounded_as_soon_as_a_session_streams() -> None:
    policy = StepPolicy(PlanLimits(prefill_tokens=100), Clock())
    policy.calibrate(READY)
    sessions = [session(1), session(2)]
    num_prompt = len(sessions[0].token_ids)
    first = policy.plan(sessions, no_sources)
    assert first.prefill_tokens == 100
    policy.learn(done(first, {2: num_prompt // 2}, {1: 0}), 1)
    bounded = policy.plan(sessions, no_sources).prefill_tokens
    assert 15 < bounded < 30  # half of a step of about 40 ms, at about 1 ms a token


def test_prompts_left_are_counted_by_what_was_prefilled_and_by_what_is_in_flight() -> None:
    policy = StepPolicy(PlanLimits(prefill_tokens=3, max_batch=1), Clock())
    policy.calibrate(READY)
    sessions = [session(1), session(2)]
    num_prompt = len(sessions[0].token_ids)
    assert num_prompt > 3
    first = policy.plan(sessions, no_sources)
    assert [step.shares for step in policy._in_flight.values()] == [{1: 3}]
    policy.plan(sessions, no_sources)
    left = min(3, num_prompt - 3)
    assert policy._in_flight[2].shares == ({1: left, 2: 3 - left} if left < 3 else {1: 3})
    policy.learn(done(first, {1: 2}), 0)  # one less than planned
    assert policy._sessions[1].num_prompt_left == num_prompt - 2
    assert policy._sessions[2].num_prompt_left == num_prompt


def test_who_is_likely_served_by_the_step_in_flight_goes_last_in_the_next() -> None:
    clock = Clock()
    policy = StepPolicy(PlanLimits(max_batch=2), clock)
    policy.calibrate(READY)
    sessions = [session(number) for number in range(1, 5)]
    policy.learn(done(policy.plan(sessions, no_sources), decoded=dict.fromkeys((1, 2, 3, 4), 0)), 4)
    clock.now_s = 0.04
    first = policy.plan(sessions, no_sources)
    assert [entry.session for entry in first.entries] == [1, 2, 3, 4]
    clock.now_s = 0.08
    assert [e.session for e in policy.plan(sessions, no_sources).entries] == [3, 4, 1, 2]
    # what it did instead is known when it ends
    clock.now_s = 0.12
    policy.learn(done(first, decoded={3: 0, 2: 0}), 2)
    clock.now_s = 0.16
    assert [e.session for e in policy.plan(sessions, no_sources).entries][:2] == [1, 4]


def test_the_time_of_steps_and_levels_is_learned() -> None:
    policy = StepPolicy(PlanLimits(), Clock())
    policy.calibrate(READY)
    assert policy.costs.level is None
    policy.calibrate(msgspec.structs.replace(READY, level_time_s=0.004, level_row_time_s=0.00001))
    batch = policy.plan([session(1)], no_sources)
    assert batch.levels is not None
    assert batch.levels.level_time_s == pytest.approx(0.004, rel=0.01)
    truth, random = StepCosts(0.08, 0.002), Random(1)
    for _ in range(200):
        num_rows = random.randint(0, 30)
        level_s = 0.01
        step = done(batch, decoded={1: num_rows}, seconds=truth.predict(1 + num_rows) + level_s)
        policy.learn(
            msgspec.structs.replace(step, num_levels=1, num_level_rows=8, level_s=level_s), 1
        )
    costs = policy.costs
    assert costs.step.predict(16, 1, 100) == pytest.approx(truth.predict(16), rel=0.02)
    assert costs.step.row_time_s == pytest.approx(0.002, rel=0.1)
    assert costs.level is not None
    assert costs.level.level_time_s == pytest.approx(0.01, rel=0.05)
    assert 10 < costs.rows_per_session < 22
    assert costs.context_per_session == pytest.approx(100, rel=0.01)
    levels = policy.plan([session(1)], no_sources).levels
    assert levels is not None
    assert (levels.row_time_s, levels.tokens_per_s) == (costs.step.row_time_s, costs.tokens_per_s)


def test_steps_without_a_forward_say_nothing_of_its_time() -> None:
    policy = StepPolicy(PlanLimits(), Clock())
    policy.calibrate(READY)
    before = policy.costs.step
    for _ in range(20):
        policy.learn(StepDone(9, 0.0, 1e-5, 0.0, 0, []), 0)
    assert policy.costs.step == before


def test_the_engines_own_draft_model_is_judged_like_those_of_the_nodes() -> None:
    factors = Factors()
    policy = StepPolicy(PlanLimits(), Clock(), factors)
    policy.calibrate(msgspec.structs.replace(READY, level_time_s=0.004, draft_fingerprint=b"small"))
    seen = [SourceSeen(0, 0.9, False), SourceSeen(7, 0.9, True)]
    result = EntryResult(1, 10, [4], [], 0, 0, seen=seen)
    for _ in range(30):
        policy.learn(StepDone(1, 0.0, 0.04, 0.0, 1, [result]), 1)
    terms = policy.plan([session(1)], no_sources).levels
    assert terms is not None
    assert terms.factor < 0.2
    assert terms.quality == factors.quality(b"small") < 0.2
    assert terms.draft == factors.draft(b"small") == 1


def test_an_engine_that_comes_back_prefills_everything_again() -> None:
    policy = StepPolicy(PlanLimits(prefill_tokens=100), Clock())
    policy.calibrate(READY)
    sessions = [session(1), session(2)]
    policy.learn(done(policy.plan(sessions, no_sources), decoded={1: 0, 2: 0}), 2)
    assert policy.plan(sessions, no_sources).prefill_tokens < 100
    policy.calibrate(READY)
    assert policy.plan(sessions, no_sources).prefill_tokens == 100


@dataclass
class CappedEngine:
    """Two steps in flight; serves who must be and then its favourites, or nobody else."""

    policy: StepPolicy
    clock: Clock
    cap: int
    random: Random
    served: dict[int, int]
    queued: list[VerificationBatch] = field(default_factory=list)

    def turn(self) -> None:
        sessions = [session(number) for number in self.served]
        self.clock.now_s += 0.04
        self.queued.append(self.policy.plan(sessions, no_sources))
        if len(self.queued) < 2:
            return
        batch = self.queued.pop(0)
        decoding = [e for e in batch.entries if self.policy._sessions[e.session].served_step > 0]
        musts = [entry.session for entry in decoding if entry.must]
        rest = [e.session for e in decoding if not e.must and e.session % 3 == 0]
        chosen = musts + (rest if self.random.random() < 0.7 else [])
        # prompts are no matter here: the first step prefills them all
        first = [e.session for e in batch.entries if e.session not in musts + rest]
        chosen = chosen[: self.cap] if batch.step_no > 1 else first
        for number in chosen:
            self.served[number] = batch.step_no
        self.policy.learn(done(batch, decoded=dict.fromkeys(chosen, 0)), len(chosen))


@pytest.mark.parametrize(("num_sessions", "cap"), [(24, 8), (7, 3), (5, 1), (9, 4)])
def test_law7_bounded_waiting_with_two_steps_in_flight(num_sessions: int, cap: int) -> None:
    clock = Clock()
    limits = PlanLimits(max_batch=cap, max_itl_s=1e9, prefill_tokens=10_000)
    policy = StepPolicy(limits, clock)
    policy.calibrate(READY)
    served = dict.fromkeys(range(1, num_sessions + 1), 0)
    engine = CappedEngine(policy, clock, cap, Random(1), served)
    for step_no in range(1, 200):
        engine.turn()
        bound = -(-num_sessions // cap) + 2
        assert all(step_no - 1 - at <= bound for at in engine.served.values())


def test_what_levels_bring_is_learned() -> None:
    policy = StepPolicy(PlanLimits(), Clock())
    policy.calibrate(msgspec.structs.replace(READY, level_time_s=0.004, level_row_time_s=0.00001))
    by_level, by_all = TokenSource(own=True), TokenSource(own=True, ngram=True)
    for _ in range(200):
        batch = policy.plan([session(1)], no_sources)
        step = done(batch, decoded={1: 2})
        results = [msgspec.structs.replace(r, sources=[by_level, by_all]) for r in step.results]
        policy.learn(
            msgspec.structs.replace(step, results=results, num_levels=1, level_mass=2.0), 2
        )
    assert policy.costs.level_worth == pytest.approx(0.5, abs=0.1)
    for _ in range(1000):
        batch = policy.plan([session(1)], no_sources)
        policy.learn(done(batch, decoded={1: 1}), 1)
    assert policy.costs.level_worth == pytest.approx(1.0, abs=0.01)
