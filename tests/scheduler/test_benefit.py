import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordinator.engine.messages import EntryResult, StepDone, TokenSource
from coordinator.scheduler.benefit import (
    MIN_SESSIONS,
    NUM_STRATA,
    Arm,
    Benefit,
    Comparison,
    Estimate,
    shares,
    stratum,
    student_975,
)
from coordinator.scheduler.costs import StepCosts

COSTS = StepCosts(step_time_s=0.041, row_time_s=0.001)


def result(
    session: int, num_tokens: int = 1, num_rows: int = 0, num_own_rows: int = 0
) -> EntryResult:
    tokens = [4] * num_tokens
    return EntryResult(
        session,
        10,
        tokens,
        [TokenSource()] * num_tokens,
        num_rows,
        0,
        num_own_rows=num_own_rows,
    )


def step(
    results: Sequence[EntryResult], seconds: float, num_prompt_rows: int = 0, level_s: float = 0.0
) -> StepDone:
    num_rows = num_prompt_rows + sum(1 + each.num_rows for each in results)
    return StepDone(1, 7.0, 7.0 + seconds, 0.0, num_rows, list(results), level_s=level_s)


# --- the split of a step --------------------------------------------------------------------------


def test_the_fixed_cost_is_shared_equally_and_rows_are_charged_to_their_session() -> None:
    done = step([result(1, num_rows=7), result(2), result(3)], 0.050)
    assert shares(done, COSTS) == pytest.approx((0.040 / 3 + 0.008, 0.040 / 3 + 0.001, 0.043 / 3))


def test_what_rows_do_not_explain_is_shared_equally() -> None:
    results = [result(1, num_rows=7), result(2)]
    once, slow = (shares(step(results, seconds), COSTS) for seconds in (0.049, 0.069))
    assert slow == pytest.approx([share + 0.010 for share in once])
    # a step in which all is explained by rows, and more: rows cost what it took
    fast = shares(step(results, 0.0045), COSTS)
    assert fast == pytest.approx((0.004, 0.0005))


def test_levels_are_charged_by_the_rows_that_they_brought() -> None:
    results = [result(1, num_rows=4, num_own_rows=3), result(2, num_rows=1, num_own_rows=1)]
    plain = shares(step(results, 0.047), COSTS)
    charged = shares(step(results, 0.047 + 0.008, level_s=0.008), COSTS)
    assert [b - a for a, b in zip(plain, charged, strict=True)] == pytest.approx([0.006, 0.002])
    # nothing came of them: nobody is to blame
    in_vain = shares(step([result(1), result(2)], 0.042 + 0.008, level_s=0.008), COSTS)
    assert in_vain == pytest.approx((0.025, 0.025))


def test_prompt_rows_are_charged_to_nobody() -> None:
    assert shares(step([result(1), result(2)], 0.142, num_prompt_rows=100), COSTS) == pytest.approx(
        (0.021, 0.021)
    )


def test_before_anything_is_known_the_shares_are_equal() -> None:
    done = step([result(1, num_rows=7), result(2)], 0.05)
    assert shares(done, StepCosts(0.0, 0.0)) == pytest.approx((0.025, 0.025))
    assert shares(done, StepCosts(-1.0, -1.0)) == pytest.approx((0.025, 0.025))


@given(
    st.lists(st.tuples(st.integers(0, 32), st.integers(0, 8)), min_size=1, max_size=20),
    st.floats(1e-4, 1.0),
    st.floats(0.0, 1.0),
    st.floats(-0.01, 0.1),
)
def test_the_shares_add_up_to_the_step(
    rows: list[tuple[int, int]], seconds: float, level_part: float, row_s: float
) -> None:
    results = [result(i, 1, num, min(num, own)) for i, (num, own) in enumerate(rows)]
    split = shares(step(results, seconds, level_s=level_part * seconds), StepCosts(0.04, row_s))
    assert all(share >= 0 for share in split)
    assert sum(split) == pytest.approx(seconds, rel=1e-9)


def test_sizes_of_steps() -> None:
    assert [stratum(num) for num in (1, 2, 3, 4, 5, 8, 9, 16, 17)] == [0, 1, 2, 2, 3, 3, 4, 4, 5]
    assert stratum(10**9) == NUM_STRATA - 1


# --- sessions from step to step -------------------------------------------------------------------


def run_sessions(book: Benefit, arm: Arm, numbers: Sequence[int], tokens_per_step: int) -> None:
    for number in numbers:
        book.open(number, arm)
        book.add_step(step([result(number, 0)], 0.5, num_prompt_rows=500), COSTS)
        book.add_step(step([result(number, 1)], 0.5, num_prompt_rows=500), COSTS)
        for _ in range(100):
            book.add_step(step([result(number, tokens_per_step)], 0.041), COSTS)
        book.close(number)
        book.close(number)


def test_tokens_per_engine_second_of_both_arms_are_compared() -> None:
    book = Benefit()
    run_sessions(book, "drafted", range(100, 100 + MIN_SESSIONS), 3)
    run_sessions(book, "holdout", range(200, 200 + MIN_SESSIONS), 2)
    got = book.estimate()
    assert got.ratio == pytest.approx(1.5)
    assert (got.num_drafted, got.num_holdouts) == (MIN_SESSIONS, MIN_SESSIONS)
    assert got.low == pytest.approx(1.5, rel=1e-6)  # all sessions were alike
    assert got.high == pytest.approx(1.5, rel=1e-6)


def test_sessions_that_take_no_part_and_steps_without_results_count_for_nothing() -> None:
    book = Benefit()
    book.add_step(step([], 0.04), COSTS)
    book.add_step(step([result(1, 5)], 0.04), COSTS)
    book.close(1)
    book.open(2, "drafted")
    book.close(2)  # cancelled before it had a token
    assert book.estimate() == Estimate(None, None, None, 0, 0)


def test_law7_bounded_sessions_that_ended_are_forgotten() -> None:
    book = Benefit()
    run_sessions(book, "drafted", range(50), 1)
    assert not book._live


# --- the figure -----------------------------------------------------------------------------------


def figures(tokens: dict[int, float], seconds: dict[int, float]) -> NDArray[np.float64]:
    made = np.zeros(2 * NUM_STRATA)
    for at, num in tokens.items():
        made[at] = num
    for at, length in seconds.items():
        made[NUM_STRATA + at] = length
    return made


def one_rate(rate: float, seconds: float = 1.0, at: int = 3) -> NDArray[np.float64]:
    return figures({at: rate * seconds}, {at: seconds})


def filled(num_drafted: int, num_holdouts: int, num_tokens: float = 1000.0) -> Comparison:
    book = Comparison()
    for _ in range(num_drafted):
        book.add("drafted", one_rate(num_tokens))
    for _ in range(num_holdouts):
        book.add("holdout", one_rate(num_tokens))
    return book


@pytest.mark.parametrize(
    ("num_drafted", "num_holdouts", "num_tokens", "is_enough"),
    [
        (20, 20, 1000.0, True),
        (19, 20, 1000.0, False),
        (20, 19, 1000.0, False),
        (20, 20, 40.0, False),
        (0, 0, 1000.0, False),
    ],
)
def test_too_little_says_nothing(
    num_drafted: int, num_holdouts: int, num_tokens: float, is_enough: bool
) -> None:
    got = filled(num_drafted, num_holdouts, num_tokens).estimate()
    assert (got.num_drafted, got.num_holdouts) == (num_drafted, num_holdouts)
    assert (got.ratio is not None) == (got.low is not None) == (got.high is not None) == is_enough


def test_arms_that_were_never_in_steps_of_one_size_cannot_be_compared() -> None:
    book = Comparison()
    for _ in range(100):
        book.add("drafted", one_rate(900.0, at=1))
        book.add("holdout", one_rate(900.0, at=2))
    assert book.estimate() == Estimate(None, None, None, 100, 100)


def test_load_does_not_pass_for_benefit() -> None:
    """Volunteers come when it is crowded, where a token costs a quarter: not their merit."""
    book = Comparison()
    for i in range(400):
        quiet, crowded = (3.0, 1.0) if i % 8 == 0 else (0.1, 5.0)
        arm: Arm = "holdout" if i % 8 == 0 else "drafted"
        book.add(arm, figures({0: 100 * quiet, 4: 400 * crowded}, {0: quiet, 4: crowded}))
    got = book.estimate()
    assert got.ratio == pytest.approx(1.0)
    assert got.low is not None
    assert got.high is not None
    assert got.low <= 1.0 <= got.high


@given(
    st.lists(st.tuples(st.floats(1, 100), st.floats(0.1, 10)), min_size=25, max_size=40),
    st.floats(0.3, 3.0),
    st.floats(0.01, 100.0),
)
def test_the_unit_of_time_does_not_matter(
    sessions: list[tuple[float, float]], ratio: float, unit: float
) -> None:
    books = Comparison(memory=1e12), Comparison(memory=1e12)
    for book, scale in zip(books, (1.0, unit), strict=True):
        for i, (rate, seconds) in enumerate(sessions):
            tokens = 3000 * rate * seconds
            at = i % 2
            book.add("holdout", figures({at: tokens}, {at: scale * seconds}))
            book.add("drafted", figures({at: ratio * tokens}, {at: scale * seconds}))
    one, other = (book.estimate() for book in books)
    assert one.ratio is not None
    assert one.low is not None
    assert one.high is not None
    assert one.ratio == pytest.approx(ratio, rel=1e-6)
    assert one.low <= one.ratio <= one.high
    assert (other.low, other.ratio, other.high) == pytest.approx((one.low, one.ratio, one.high))


def test_old_sessions_are_forgotten() -> None:
    book = Comparison(memory=100.0)
    for rate in (3.0, 1.0):
        for _ in range(1000):
            book.add("drafted", one_rate(1000 * rate))
            book.add("holdout", one_rate(1000))
    got = book.estimate()
    assert got.ratio == pytest.approx(1.0, abs=0.01)
    assert got.num_holdouts < 110  # what it rests on, not all that ever was


@pytest.mark.parametrize("memory", [0.0, -1.0, float("nan")])
def test_a_senseless_memory_is_refused(memory: float) -> None:
    with pytest.raises(ValueError, match="memory"):
        Comparison(memory)


def test_students_quantile() -> None:
    table = {10: 2.228139, 19: 2.093024, 30: 2.042272, 100: 1.983972}
    for degrees_of_freedom, quantile in table.items():
        assert student_975(degrees_of_freedom) == pytest.approx(quantile, abs=1e-3)


def simulated(generator: np.random.Generator, ratio: float, num_holdouts: int) -> Estimate:
    """Sessions of very different ease and length, over steps of three sizes."""
    book = Comparison(memory=1e9)
    speed = {1: 40.0, 3: 100.0, 4: 160.0}
    for i in range(num_holdouts * 5):
        is_holdout = i % 5 == 0
        ease = generator.lognormal(-0.08, 0.4)  # of mean 1; the session's as a whole
        tokens: dict[int, float] = {}
        seconds: dict[int, float] = {}
        for at in generator.choice([1, 3, 4], size=2, replace=False):
            seconds[int(at)] = generator.gamma(2.0, 0.5)
            rate = speed[int(at)] * ease * (1.0 if is_holdout else ratio)
            tokens[int(at)] = generator.poisson(rate * seconds[int(at)])
        book.add("holdout" if is_holdout else "drafted", figures(tokens, seconds))
    return book.estimate()


@pytest.mark.parametrize(("ratio", "num_holdouts"), [(1.0, 25), (1.21, 40), (1.6, 80)])
def test_the_interval_covers_the_true_ratio_95_times_in_100(
    ratio: float, num_holdouts: int
) -> None:
    generator = np.random.default_rng(17)
    got = [simulated(generator, ratio, num_holdouts) for _ in range(300)]
    num_covered = sum(e.low <= ratio <= e.high for e in got if e.low and e.high)
    assert 0.912 <= num_covered / len(got) <= 0.988  # 95 % and 3 standard deviations
    mean = math.fsum(math.log(e.ratio) for e in got if e.ratio) / len(got)
    assert math.exp(mean) == pytest.approx(ratio, rel=0.02)


def test_the_interval_is_about_as_wide_as_the_figure_varies() -> None:
    generator = np.random.default_rng(18)
    got = [simulated(generator, 1.2, 60) for _ in range(200)]
    spread = float(np.std([math.log(e.ratio) for e in got if e.ratio]))
    widths = [math.log(e.high / e.low) / 2 / 1.96 for e in got if e.low and e.high]
    assert float(np.mean(widths)) == pytest.approx(spread, rel=0.15)


def test_tokens_alone_would_promise_too_much() -> None:
    """Sessions as units: with tokens as units the same data would give a far narrower interval."""
    got = simulated(np.random.default_rng(19), 1.2, 60)
    assert got.low is not None
    assert got.high is not None
    by_tokens = 1.96 * math.sqrt(1 / (60 * 100) + 1 / (240 * 100))
    assert math.log(got.high / got.low) / 2 > 2 * by_tokens
