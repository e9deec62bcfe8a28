"""Short sessions overtake long ones, and long ones still move."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.costs import Costs, StepCosts
from coordinator.scheduler.plan import PlanLimits, SessionState, plan
from coordinator.scheduler.queues import Queues, QueueSettings

SETTINGS = QueueSettings(num_queues=4, first_quantum_s=1.0, growth=2.0, patience_s=10.0)
STEP = StepCosts(0.040, 0.00008)
COSTS = Costs(STEP, 100.0, (), rows_per_session=4.0)


def test_a_session_skips_the_queues_that_its_prompt_would_fall_through() -> None:
    queues = Queues(SETTINGS)
    for number, cost_s in enumerate((0.5, 1.0, 1.5, 4.0, 5.0, 1000.0)):
        queues.join(number, cost_s, 0.0)
    assert [queues.queue(number, 0.0) for number in range(6)] == [0, 0, 1, 2, 3, 3]


def test_it_falls_when_it_has_used_a_quantum_and_no_deeper_than_the_last_queue() -> None:
    queues = Queues(SETTINGS)
    queues.join(1, 0.1, 0.0)
    queues.charge(1, 0.9, 1.0)
    assert queues.queue(1, 1.0) == 0
    queues.charge(1, 0.1, 2.0)
    assert queues.queue(1, 2.0) == 1
    queues.charge(1, 1.9, 3.0)
    assert queues.queue(1, 3.0) == 1
    queues.charge(1, 100.0, 4.0)
    assert queues.queue(1, 4.0) == 3


def test_it_rises_by_a_queue_for_every_span_of_waiting_and_gets_a_quantum_there() -> None:
    queues = Queues(SETTINGS)
    queues.join(1, 1000.0, 0.0)
    assert queues.queue(1, 9.9) == 3
    assert queues.queue(1, 10.0) == 2
    assert queues.queue(1, 19.0) == 2
    queues.charge(1, 3.9, 19.0)
    assert queues.queue(1, 28.0) == 2
    assert queues.queue(1, 1e6) == 0


def test_unknown_sessions_go_last_and_those_that_left_are_forgotten() -> None:
    queues = Queues(SETTINGS)
    queues.charge(7, 1.0, 0.0)
    assert queues.queue(7, 0.0) == 3
    for number in range(5):
        queues.join(number, 0.1, 0.0)
    for number in (0, 2, 4, 9):
        queues.leave(number)
    assert len(queues) == 2
    assert queues.queue(1, 0.0) == 0
    assert queues.queue(2, 0.0) == 3


@pytest.mark.parametrize(
    "bad",
    [{"num_queues": 0}, {"growth": 1.0}, {"first_quantum_s": 0.0}, {"patience_s": -1.0}],
)
def test_senseless_queues_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"queues|quantum"):
        QueueSettings(**bad)


@given(
    joins=st.lists(st.floats(0, 100), min_size=1, max_size=5),
    events=st.lists(st.tuples(st.integers(0, 4), st.floats(0, 20), st.floats(0, 30)), max_size=60),
)
def test_queues_exist_and_only_service_lowers_sessions(
    joins: list[float], events: list[tuple[int, float, float]]
) -> None:
    queues, now = Queues(SETTINGS), 0.0
    for number, cost_s in enumerate(joins):
        queues.join(number, cost_s, now)
    for who, cost_s, pause_s in events:
        before = [queues.queue(number, now) for number in range(len(joins))]
        queues.charge(who, cost_s, now)
        now += pause_s
        after = [queues.queue(number, now) for number in range(len(joins))]
        assert all(0 <= queue <= 3 for queue in after)
        assert all(after[n] <= before[n] for n in range(len(joins)) if n != who)


# --- against first come, first served ------------------------------------------------------------


@dataclass(slots=True)
class Job:
    number: int
    arrived_s: float
    num_prompt: int
    num_output: int
    num_prompt_left: int
    num_done: int = 0
    last_s: float = 0.0
    last_step: int = 0
    ended_s: float = 0.0


def bimodal(rng: random.Random, num_jobs: int, every_s: float) -> list[Job]:
    """Nine short questions, then a long document."""
    jobs, now = [], 0.0
    for number in range(num_jobs):
        now += rng.expovariate(1 / every_s)
        is_long = rng.random() < 0.1
        prompt = rng.randint(4000, 8000) if is_long else rng.randint(50, 200)
        output = rng.randint(300, 500) if is_long else rng.randint(10, 60)
        jobs.append(Job(number, now, prompt, output, prompt))
    return jobs


def serve(jobs: list[Job], limits: PlanLimits) -> None:
    """An engine that commits one token per decoding session and step.

    At a cap it takes who must be served, then the oldest, as `take_fewer` does where all have rows.
    """
    queues, live, waiting = Queues(), list[Job](), list(jobs)
    now, step_no = 0.0, 0
    while live or waiting:
        if not live:
            now = max(now, waiting[0].arrived_s)
        while waiting and waiting[0].arrived_s <= now:
            job = waiting.pop(0)
            job.last_s, job.last_step = now, step_no
            queues.join(job.number, job.num_prompt * STEP.row_time_s, now)
            live.append(job)
        step_no += 1
        now = step(live, queues, limits, step_no, now)
        for job in live:
            if job.ended_s:
                queues.leave(job.number)
        live = [job for job in live if not job.ended_s]
        assert len(queues) == len(live)


def step(live: list[Job], queues: Queues, limits: PlanLimits, step_no: int, now: float) -> float:
    """When the step ended."""
    states = [
        SessionState(
            job.number,
            job.last_s,
            job.num_prompt_left,
            job.num_done,
            job.arrived_s,
            queues.queue(job.number, now),
            job.last_step,
        )
        for job in live
    ]
    batch = plan(now, states, COSTS, limits, step_no)
    by_number = {job.number: job for job in live}
    entries = [by_number[entry.session] for entry in batch.entries]
    musts = {entry.session for entry in batch.entries if entry.must}
    decoding = [job for job in entries if not job.num_prompt_left]
    decoding.sort(key=lambda job: 0 if job.number in musts else 1 + job.last_step)
    decoding = decoding[: batch.max_sessions or len(decoding)]
    shares, budget = list[tuple[Job, int]](), batch.prefill_tokens
    for job in entries:
        if job.num_prompt_left and budget:
            shares.append((job, min(budget, job.num_prompt_left)))
            budget -= shares[-1][1]
    num_rows = len(decoding) + sum(share for _, share in shares)
    now += STEP.predict(num_rows)
    for job, share in shares:
        job.num_prompt_left -= share
    for job in decoding:
        job.num_done += 1
        job.ended_s = now if job.num_done == job.num_output else 0.0
    for job in (*decoding, *(job for job, _ in shares)):
        job.last_s, job.last_step = now, step_no
    for job in decoding:
        queues.charge(job.number, STEP.step_time_s / len(decoding), now)
    for job, share in shares:
        queues.charge(job.number, share * STEP.row_time_s, now)
    return now


@dataclass(frozen=True, slots=True)
class Spans:
    """Seconds from arrival to the last token."""

    mean: float
    p95: float
    mean_short: float
    mean_long: float


def spans(max_batch: int, every_s: float, *, has_queues: bool) -> Spans:
    jobs = bimodal(random.Random(5), 200, every_s)
    serve(jobs, PlanLimits(max_batch=max_batch, has_queues=has_queues))
    taken = sorted(job.ended_s - job.arrived_s for job in jobs)
    short = [job.ended_s - job.arrived_s for job in jobs if job.num_prompt < 1000]
    long = [job.ended_s - job.arrived_s for job in jobs if job.num_prompt > 1000]
    return Spans(
        sum(taken) / len(taken),
        taken[int(0.95 * len(taken))],
        sum(short) / len(short),
        sum(long) / len(long),
    )


def test_queues_beat_first_come_first_served_where_prompts_wait() -> None:
    """200 sessions, 10 % of them long; prompts take four fifths of what steps may prefill."""
    fcfs, queued = (spans(0, 0.2, has_queues=has) for has in (False, True))
    assert queued.mean < 0.8 * fcfs.mean
    assert queued.mean_short < 0.6 * fcfs.mean_short
    assert queued.mean_long < 1.1 * fcfs.mean_long
    assert queued.p95 < 1.1 * fcfs.p95


def test_queues_at_a_cap_help_short_sessions_where_more_wait_than_a_batch_names() -> None:
    """Among those that are named the oldest go first: less to win, and less to lose."""
    fcfs, queued = (spans(4, 0.9, has_queues=has) for has in (False, True))
    assert queued.mean < 0.97 * fcfs.mean
    assert queued.mean_short < 0.85 * fcfs.mean_short
    assert queued.mean_long < 1.1 * fcfs.mean_long
    assert queued.p95 < 1.1 * fcfs.p95


def test_law7_bounded_waiting_of_a_long_prompt_under_an_endless_stream_of_short_ones() -> None:
    """The short prompts alone need more than the steps may prefill."""
    long = Job(0, 0.0, 8000, 100, 8000)
    short = [Job(number, 0.15 * number, 400, 20, 400) for number in range(1, 600)]
    serve([long, *short], PlanLimits(prefill_tokens=100))
    assert long.ended_s < short[-1].arrived_s
