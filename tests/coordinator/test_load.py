"""What the network did in the last seconds."""

import pytest
from msgspec.structs import replace

from coordinator.engine.messages import StepDone
from coordinator.load import WINDOW_S, Load
from coordinator.sessions import Committed
from tests.support.results import session


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def step(seconds: float = 0.05) -> StepDone:
    return StepDone(1, 7.0, 7.0 + seconds, 0.0, 1, [])


def test_nothing_yet() -> None:
    load = Load(Clock())
    assert (load.tokens_per_s, load.engine_busy, load.acceptance_length) == (0, 0, None)


def test_rates_are_of_the_last_seconds_and_totals_are_of_all() -> None:
    clock = Clock()
    load = Load(clock)
    for _ in range(600):  # 30 s
        clock.now_s += 0.05
        load.add_step(step(0.04), 3)
    assert load.uptime_s == pytest.approx(30)
    assert load.tokens_per_s == pytest.approx(60, rel=0.02)
    assert load.engine_busy == pytest.approx(0.8, rel=0.02)
    assert (load.num_tokens, load.num_steps) == (1800, 600)
    assert load.engine_s == pytest.approx(24)
    clock.now_s += WINDOW_S + 1
    assert (load.tokens_per_s, load.engine_busy) == (0, 0)
    assert load.num_tokens == 1800


def test_soon_after_the_start_the_window_is_the_uptime() -> None:
    clock = Clock()
    load = Load(clock)
    clock.now_s += 0.5
    load.add_step(step(0.5), 10)
    assert load.tokens_per_s == pytest.approx(20)
    assert load.engine_busy == pytest.approx(1.0)


def test_law7_bounded_memory_of_steps() -> None:
    clock = Clock()
    load = Load(clock)
    for _ in range(10_000):
        clock.now_s += 0.1
        load.add_step(step(), 1)
    assert len(load._recent) <= WINDOW_S / 0.1 + 1


def test_the_token_of_a_prefill_is_no_round() -> None:
    load = Load(Clock())
    load.add_round(Committed(10, [4]), is_first=True)
    assert load.acceptance_length is None
    load.add_round(Committed(11, [4, 5, 6], {1: 2}), is_first=False)
    load.add_round(Committed(14, [4]), is_first=False)
    assert load.acceptance_length == 2.0
    assert load.num_accepted == 2


def test_who_guessed_is_summed_up() -> None:
    load = Load(Clock())
    for _ in range(3):
        load.add_round(
            Committed(11, [4] * 7, {1: 3}, num_second=2, num_ngram=2, num_own=1), is_first=False
        )
    assert (load.num_accepted, load.num_second, load.num_ngram, load.num_own) == (9, 6, 6, 3)


def test_the_engines_own_levels_are_counted_and_averaged_over_the_last_seconds() -> None:
    clock = Clock()
    load = Load(clock)
    assert load.levels_per_step is None
    for num_levels in (3, 3, 0, 1):
        clock.now_s += WINDOW_S / 2 + 1
        load.add_step(
            replace(step(), num_levels=num_levels, num_level_rows=8 * num_levels, level_s=0.01), 1
        )
    assert (load.num_levels, load.num_level_rows) == (7, 56)
    assert load.level_s == pytest.approx(0.04)
    assert load.levels_per_step == 0.5


def test_only_sessions_of_the_trial_are_compared() -> None:
    load = Load(Clock())
    for number, arm in enumerate((None, "drafted", "holdout"), 1):
        one = session(number)
        one.arm = arm  # type: ignore[assignment]
        load.opened(one)
    assert load.num_holdouts == 1
    assert set(load.benefit._live) == {2, 3}
    for number in (1, 2, 3, 3):
        load.ended(session(number))
    assert not load.benefit._live
