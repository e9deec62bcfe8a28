import math
import random
import time
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.messages import LevelTerms, SourceFactor, StepEntry, VerificationBatch
from coordinator.scheduler.costs import Costs, LevelCosts, StepCosts
from coordinator.scheduler.plan import (
    CANDIDATES_PER_PLACE,
    LEAST_PREFILL_TOKENS,
    FixedTree,
    PlanLimits,
    SessionState,
    plan,
)

COSTS = Costs(StepCosts(0.04, 0.0005), 100.0, (0.6, 0.5, 0.3))


def numbers(batch: VerificationBatch) -> list[int]:
    return [entry.session for entry in batch.entries]


def test_every_live_session_is_in_the_step() -> None:
    factor = SourceFactor(11, 0.9)
    sessions = [SessionState(1, 5.0), SessionState(2, 3.0)]
    nodes = {1: [factor], 2: []}
    limits = PlanLimits(max_rows=8, prefill_tokens=300)
    batch = plan(9.0, sessions, COSTS, limits, 7, nodes.__getitem__)
    assert batch.step_no == 7
    assert batch.entries == [StepEntry(1, 8, [factor]), StepEntry(2, 8, [])]
    assert batch.row_price == pytest.approx(0.05)
    assert batch.ngram_hit_rates == [0.6, 0.5, 0.3]
    assert batch.max_sessions == 0
    assert batch.levels is None


def test_the_engine_guesses_from_the_text_only_where_it_may() -> None:
    batch = plan(1.0, [SessionState(1, 0.0)], COSTS, PlanLimits(has_ngram=False), 1)
    assert batch.ngram_hit_rates == []


def test_law3_critical_path_is_free_of_nodes() -> None:
    """A session without any node is planned exactly like the others, and nothing is waited for."""
    sessions = [SessionState(n, 0.0) for n in range(1, 5)]
    drafted = plan(1.0, sessions, COSTS, PlanLimits(), 1, lambda n: [SourceFactor(n, 1.0)])
    alone = plan(1.0, sessions, COSTS, PlanLimits(), 1)
    assert numbers(drafted) == numbers(alone) == [1, 2, 3, 4]


def test_nothing_live_makes_an_empty_step() -> None:
    assert plan(1.0, [], COSTS, PlanLimits(), 1).entries == []


def test_a_session_that_only_nodes_on_trial_draft_for_gets_few_rows() -> None:
    trial, known = SourceFactor(1, 0.5, max_rows=8), SourceFactor(2, 1.0)
    nodes = [[], [trial], [known], [trial, known]]
    sessions = [SessionState(number, 0.0) for number in range(4)]

    def max_rows(costs: Costs, most: int) -> list[int]:
        batch = plan(1.0, sessions, costs, PlanLimits(max_rows=most), 1, nodes.__getitem__)
        return [entry.max_rows for entry in batch.entries]

    assert max_rows(COSTS, 32) == [32, 8, 32, 32]
    assert max_rows(COSTS, 4)[1] == 4
    drafting = replace(COSTS, level=LevelCosts(0.008, 0.0))
    assert max_rows(drafting, 32) == [32] * 4  # its own levels need them


# --- a capped step -------------------------------------------------------------------------------


def test_at_a_cap_more_are_named_than_it_takes_the_longest_waiting_first() -> None:
    sessions = [SessionState(n, last_planned_s=n / 100, last_step=9) for n in range(40, 0, -1)]
    batch = plan(0.5, sessions, COSTS, PlanLimits(max_batch=3), 10)
    assert batch.max_sessions == 3
    assert numbers(batch) == list(range(1, 3 * CANDIDATES_PER_PLACE + 1))
    assert not any(entry.must for entry in batch.entries)


def test_where_all_fit_under_the_cap_it_is_only_a_bound() -> None:
    sessions = [SessionState(n, 0.0) for n in range(3)]
    assert plan(0.5, sessions, COSTS, PlanLimits(max_batch=3), 10).max_sessions == 0
    # a fourth, whose prompt may be read by the time the step starts
    reading = [*sessions, SessionState(3, 0.0, num_prompt_left=5)]
    batch = plan(0.5, reading, COSTS, PlanLimits(max_batch=3), 10)
    assert batch.max_sessions == 3
    assert numbers(batch) == [0, 1, 2, 3]


def test_short_sessions_go_first_and_inside_a_queue_the_oldest() -> None:
    queues = {1: 2, 2: 0, 3: 1, 4: 0}
    sessions = [SessionState(n, -n / 10, queue=at, last_step=9) for n, at in queues.items()]
    queued = plan(0.0, sessions, COSTS, PlanLimits(max_batch=1), 10)
    assert numbers(queued) == [4, 2, 3, 1]
    fcfs = plan(0.0, sessions, COSTS, PlanLimits(max_batch=1, has_queues=False), 10)
    assert numbers(fcfs) == [4, 3, 2, 1]


def test_who_waits_longer_than_the_bound_must_be_served() -> None:
    waits = {1: 0.1, 2: 0.9, 3: 0.6, 4: 0.7}
    sessions = [SessionState(n, 5.0 - wait, last_step=9) for n, wait in waits.items()]
    batch = plan(5.0, sessions, COSTS, PlanLimits(max_batch=2, max_itl_s=0.5), 10)
    assert [(entry.session, entry.must) for entry in batch.entries] == [
        (2, True),
        (4, True),
        (3, False),
        (1, False),
    ]


@dataclass
class Unfair:
    """An engine with a cap whose choice among those that need not be served follows a whim.

    As in earnest, a plan is made while the step before it runs: of that one only those who must be
    served are known to be.
    """

    limits: PlanLimits
    random: random.Random
    last_served: dict[int, int] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)
    most: int = 0
    """Most sessions at once so far."""
    _running: VerificationBatch | None = None

    def join(self, session: int, step_no: int) -> None:
        self.last_served[session] = self.known[session] = step_no - 1
        self.most = max(self.most, len(self.last_served))

    def leave(self, session: int) -> None:
        del self.last_served[session], self.known[session]

    def step(self, step_no: int) -> None:
        batch = plan(float(step_no), self._states(), COSTS, self.limits, step_no)
        assert len(numbers(batch)) == len(set(numbers(batch)))
        assert sum(entry.must for entry in batch.entries) <= self.limits.cap
        if self._running is not None:
            self._finish(self._running)
        self._running = batch

    def _states(self) -> list[SessionState]:
        running = self._running
        sure = {e.session: running.step_no for e in running.entries if e.must} if running else {}
        whims = self.random.random() < 0.5
        return [
            SessionState(
                session,
                last_planned_s=self.random.random() if whims else float(known),
                queue=self.random.randint(0, 3),
                last_step=max(known, sure.get(session, 0)),
            )
            for session, known in self.known.items()
        ]

    def _finish(self, batch: VerificationBatch) -> None:
        musts = [entry.session for entry in batch.entries if entry.must]
        others = [entry.session for entry in batch.entries if not entry.must]
        favourites = [s for s in others if s % 3 == 0 or self.random.random() < 0.1]
        served = (musts + favourites)[: batch.max_sessions or None]
        if self.random.random() < 0.3:  # it need not even fill the step
            served = musts
        for session in served if batch.max_sessions else numbers(batch):
            if session in self.known:
                self.last_served[session] = self.known[session] = batch.step_no
        self.check(batch.step_no)

    def check(self, step_no: int) -> None:
        bound = math.ceil(self.most / self.limits.cap) + 2
        longest = max((step_no - at for at in self.last_served.values()), default=0)
        assert longest <= bound, (longest, bound)


@given(
    cap=st.integers(1, 6),
    burst=st.integers(1, 30),
    has_queues=st.booleans(),
    is_named_all=st.booleans(),
    comings=st.lists(st.integers(-2, 3), max_size=60),
    seed=st.integers(0, 1000),
)
def test_law7_bounded_waiting_whatever_the_engine_prefers(
    cap: int, burst: int, has_queues: bool, is_named_all: bool, comings: list[int], seed: int
) -> None:
    """Nobody waits longer than ceil(sessions / cap) + 2 steps, also as sessions come and go."""
    limits = PlanLimits(max_batch=cap, has_queues=has_queues, max_itl_s=math.inf)
    if is_named_all:  # no choice at all: as many are named as fit
        limits = PlanLimits(max_sessions=cap, has_queues=has_queues, max_itl_s=math.inf)
    engine = Unfair(limits, random.Random(seed))
    next_session = burst
    for session in range(burst):
        engine.join(session, 1)
    for step_no, coming in enumerate(comings + [0] * 40, start=1):
        for _ in range(coming):
            engine.join(next_session, step_no)
            next_session += 1
        for session in list(engine.known)[: max(0, -coming)]:
            engine.leave(session)
        engine.step(step_no)


def test_a_cap_leaves_the_engine_a_choice_while_nobody_falls_behind() -> None:
    """24 sessions in turns of 8, the last step's result not known yet: nobody has to be marked."""
    for step_no in range(6, 30):
        known = {turn: max(n for n in range(step_no - 1) if n % 3 == turn) for turn in range(3)}
        states = [SessionState(n, 0.0, last_step=known[n % 3]) for n in range(24)]
        batch = plan(0.0, states, COSTS, PlanLimits(max_batch=8), step_no)
        assert len(batch.entries) == 24
        assert not any(entry.must for entry in batch.entries)


# --- prompts -------------------------------------------------------------------------------------


def test_without_streams_prompts_get_all_they_may() -> None:
    sessions = [SessionState(1, 0.0, num_prompt_left=1000)]
    assert plan(1.0, sessions, COSTS, PlanLimits(prefill_tokens=300), 1).prefill_tokens == 300


def test_beside_streams_prompts_lengthen_a_step_by_their_share() -> None:
    sessions = [SessionState(1, 0.0, num_prompt_left=1000), SessionState(2, 0.0)]
    batch = plan(1.0, sessions, COSTS, PlanLimits(prefill_tokens=300), 1)
    assert batch.prefill_tokens == 40  # half of 40 ms at half a millisecond each
    free = Costs(StepCosts(0.04, 0.0), 100.0, ())
    assert plan(1.0, sessions, free, PlanLimits(prefill_tokens=300), 1).prefill_tokens == 300


@given(
    step=st.tuples(st.floats(1e-4, 0.2), st.floats(0, 0.01), st.floats(0, 0.001)),
    num_streams=st.integers(1, 100),
    rows=st.floats(1, 20),
    share=st.floats(0, 2),
    most=st.integers(1, 4096),
    cap=st.integers(0, 20),
)
def test_prompts_never_stop_and_never_take_more_than_their_share(
    step: tuple[float, float, float],
    num_streams: int,
    rows: float,
    share: float,
    most: int,
    cap: int,
) -> None:
    costs = Costs(StepCosts(*step), 100.0, (), rows_per_session=rows)
    sessions = [SessionState(n, 0.0) for n in range(num_streams)]
    sessions.append(SessionState(num_streams, 0.0, num_prompt_left=10_000))
    limits = PlanLimits(prefill_tokens=most, prefill_share=share, max_batch=cap)
    num_tokens = plan(1.0, sessions, costs, limits, 1).prefill_tokens
    assert 1 <= num_tokens <= most
    num_decoding = min(num_streams, cap or num_streams)
    alone = costs.step.predict(num_decoding * rows, num_decoding)
    both = costs.step.predict(num_decoding * rows + num_tokens, num_decoding + 1)
    assert both <= (1 + share) * alone * 1.0001 or num_tokens <= LEAST_PREFILL_TOKENS


def test_prompts_are_read_by_queue_and_then_first_come_first_served() -> None:
    sessions = [
        SessionState(1, 0.0, num_prompt_left=10, opened_s=1.0, queue=1),
        SessionState(2, 0.0, num_prompt_left=10, opened_s=3.0),
        SessionState(3, 0.0),
        SessionState(4, 0.0, num_prompt_left=10, opened_s=2.0),
    ]
    assert numbers(plan(1.0, sessions, COSTS, PlanLimits(), 1)) == [3, 4, 2, 1]
    fcfs = plan(1.0, sessions, COSTS, PlanLimits(has_queues=False), 1)
    assert numbers(fcfs) == [3, 1, 4, 2]


def test_law7_bounded_batches() -> None:
    decoding = [SessionState(n, 0.0) for n in range(100)]
    reading = [SessionState(n, 0.0, num_prompt_left=10) for n in range(100, 200)]
    batch = plan(1.0, decoding + reading, COSTS, PlanLimits(max_sessions=30), 1)
    assert sum(number < 100 for number in numbers(batch)) == 30
    assert sum(number >= 100 for number in numbers(batch)) == 30


# --- the engine's own drafting -------------------------------------------------------------------


def test_the_engine_drafts_on_the_terms_that_were_learned() -> None:
    costs = Costs(
        StepCosts(0.04, 0.0005),
        100.0,
        (),
        level=LevelCosts(0.008, 0.00001),
        own_factor=0.9,
        own_draft=3,
        own_quality=0.7,
    )
    learned = plan(1.0, [], costs, PlanLimits(), 1).levels
    assert learned == LevelTerms(
        level_time_s=0.008,
        level_row_time_s=0.00001,
        row_time_s=0.0005,
        tokens_per_s=100.0,
        max_levels=3,
        width=4,
        factor=0.9,
        draft=3,
        quality=0.7,
    )
    fixed = plan(1.0, [], costs, PlanLimits(tree=FixedTree(5, 8)), 1).levels
    assert fixed is not None
    assert (fixed.max_levels, fixed.width, fixed.is_fixed) == (5, 8, True)
    assert plan(1.0, [], costs, PlanLimits(max_levels=0), 1).levels is None


@pytest.mark.parametrize(("depth", "width"), [(0, 4), (3, 0)])
def test_a_tree_has_levels_and_vertices(depth: int, width: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        FixedTree(depth, width)


@pytest.mark.parametrize("max_batch", [0, 64])
def test_the_time_of_a_plan_grows_with_the_sessions_and_not_faster(max_batch: int) -> None:
    """A thousand took 0.4 to 1 ms on an idle machine; how long on this one says nothing."""
    few, many = (min(planning_s(number, max_batch) for _ in range(20)) for number in (250, 2000))
    assert many < 3 * 8 * few


def planning_s(num_sessions: int, max_batch: int) -> float:
    """Processor time of one plan."""
    rng = random.Random(1)
    sessions = [
        SessionState(
            n,
            rng.random(),
            num_prompt_left=rng.choice([0] * 9 + [500]),
            opened_s=rng.random(),
            queue=rng.randint(0, 7),
            last_step=rng.randint(980, 999),
        )
        for n in range(num_sessions)
    ]
    nodes = {n: [SourceFactor(n, 1.0)] for n in range(num_sessions)}
    limits = PlanLimits(max_sessions=num_sessions, max_batch=max_batch)
    started_s = time.process_time()
    plan(1.0, sessions, COSTS, limits, 1000, nodes.__getitem__)
    return time.process_time() - started_s
