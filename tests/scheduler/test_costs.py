import math

import pytest

from coordinator.engine.messages import NGRAM_ORDERS
from coordinator.scheduler.costs import (
    LEAST_ROW_PRICE,
    Costs,
    LevelWorth,
    NgramRates,
    StepCosts,
    StepShape,
    Throughput,
)


def test_a_row_costs_what_the_engine_would_have_committed_in_its_time() -> None:
    costs = StepCosts(step_time_s=0.04, row_time_s=0.0001)
    assert math.isclose(costs.row_price(200.0), 0.02)
    assert costs.row_price(0.0) == LEAST_ROW_PRICE
    assert costs.row_price(1e9) == 1.0
    # a fit may come out negative
    assert (
        StepCosts(0.04, -0.001).row_price(200.0) == LEAST_ROW_PRICE
    )  # a fit may come out negative


def test_throughput_begins_with_a_belief_and_follows_what_is_measured() -> None:
    throughput = Throughput(initial_per_s=25.0, memory=25.0)
    assert math.isclose(throughput.tokens_per_s, 25.0)
    for _ in range(200):
        throughput.observe(8, 0.04)
    assert math.isclose(throughput.tokens_per_s, 200.0, rel_tol=1e-3)
    for _ in range(25):  # one memory later two thirds of the change are seen
        throughput.observe(2, 0.04)
    assert 50 + 150 * 0.3 < throughput.tokens_per_s < 50 + 150 * 0.45


def test_a_step_that_took_no_time_says_nothing() -> None:
    throughput = Throughput(initial_per_s=25.0)
    throughput.observe(1000, 0.0)
    assert math.isclose(throughput.tokens_per_s, 25.0)


def test_a_step_that_commits_nothing_lowers_the_rate() -> None:
    throughput = Throughput(initial_per_s=25.0)
    throughput.observe(0, 0.5)
    assert throughput.tokens_per_s < 25.0


@pytest.mark.parametrize(
    ("rate", "memory"), [(-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, float("nan"))]
)
def test_a_senseless_throughput_is_refused(rate: float, memory: float) -> None:
    with pytest.raises(ValueError, match="throughput"):
        Throughput(rate, memory)


def test_ngram_rates_are_learned_per_order_and_forget() -> None:
    rates = NgramRates(initial=(0.6, 0.5, 0.3), memory=20.0)
    assert rates.rates == pytest.approx((0.6, 0.5, 0.3))
    rates.observe(0, is_hit=True)
    assert rates.rates == pytest.approx((0.6, 0.5, 0.3))
    for _ in range(200):
        rates.observe(3, is_hit=True)
    assert rates.rates == pytest.approx((0.6, 1.0, 0.3), abs=1e-3)
    for _ in range(20):
        rates.observe(3, is_hit=False)
    assert rates.rates[NGRAM_ORDERS.index(3)] == pytest.approx(math.exp(-1), abs=0.02)


def test_rates_stay_probabilities() -> None:
    rates = NgramRates()
    for _ in range(1000):
        rates.observe(4, is_hit=True)
        rates.observe(2, is_hit=False)
    assert all(0.0 <= rate <= 1.0 for rate in rates.rates)


def test_one_belief_per_order() -> None:
    with pytest.raises(ValueError, match="zip"):
        NgramRates(initial=(0.5,))


def test_costs_price_rows_by_throughput() -> None:
    assert Costs(StepCosts(0.04, 0.001), 50.0, (0.1, 0.2, 0.3)).row_price == pytest.approx(0.05)


def test_a_step_costs_its_rows_its_sequences_and_what_they_attend_to() -> None:
    costs = StepCosts(0.04, 0.001, 0.002, 1e-6)
    assert costs.predict(1) == 0.04
    assert costs.predict(5, 3, 1000) == pytest.approx(0.04 + 4 * 0.001 + 2 * 0.002 + 0.001)
    assert costs.predict(0, 0) == 0.04


def test_the_usual_shape_of_a_step_is_remembered() -> None:
    shape = StepShape()
    for _ in range(200):
        shape.observe(24, 8000, 8)
        shape.observe(100, 0, 0)  # prompts alone
    assert shape.rows_per_session == pytest.approx(3.0, rel=0.01)
    costs = Costs(
        StepCosts(0.04, 0.001, 0.002, 1e-6),
        50.0,
        (),
        rows_per_session=shape.rows_per_session,
        context_per_session=shape.context_per_session,
    )
    assert costs.decode_time_s(4) == pytest.approx(0.04 + 0.011 + 0.006 + 0.004, rel=0.01)


def test_levels_are_worth_what_they_brought() -> None:
    worth = LevelWorth()
    assert worth.value == 1.0
    for _ in range(400):
        worth.observe(4.0, 2)
    assert worth.value == pytest.approx(0.5, abs=0.05)
    for _ in range(1000):
        worth.fade()
    assert worth.value == pytest.approx(1.0, abs=0.01)


def test_a_lucky_level_is_not_trusted_far() -> None:
    worth = LevelWorth()
    worth.observe(1.0, 100)
    assert worth.value == 1.2
