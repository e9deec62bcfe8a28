"""The simulator beside real processes in emulated time; `tests/soak` has all rows."""

import pytest

from tests.simulator.measured import (
    MOST_ERROR,
    Measured,
    NotSimulated,
    compare,
    measured_rows,
    servings,
    world_of,
)
from tests.simulator.traces import demo_book

SOME = (
    "a100-32b/T0.7/s8/plain",
    "a100-32b/T0.7/s8/ours",
    "big-70b/T0.7/s8/ours",
    "h200-14b/T0.7/s8/2x4",
)


def test_the_simulator_is_right_about_some_cells() -> None:
    rows = {row.name: row for row in measured_rows()}
    known = servings()
    for name in SOME:
        compared = compare(rows[name], known[name], demo_book())
        assert abs(compared.error) <= MOST_ERROR, compared


def test_a_serving_says_what_is_simulated() -> None:
    known = servings()
    plan = world_of(known["h200-14b/T0.7/s8/capped"])
    assert (plan.num_sessions, plan.max_batch, len(plan.nodes)) == (24, 8, 4)
    assert (plan.engine_draft, plan.tree, plan.has_ngram) == ("small", None, True)
    assert plan.nodes[0].quality.round_trip_s == 0.015
    plan = world_of(known["a100-32b/T0.7/s8/3x4"])
    assert plan.tree is not None
    assert (plan.tree.depth, plan.tree.width, plan.has_ngram, plan.nodes) == (3, 4, False, ())
    assert world_of(known["a100-32b/T0.7/s8/lockstep-3x16:8"]).lockstep is not None
    assert world_of(known["a100-32b/T0.7/s8/useless"]).nodes[0].draft == "liar"
    assert world_of(known["a100-32b/T0.7/s8/churn"]).nodes[0].quality.churn_s == 2.0
    assert world_of(known["a100-32b/T0.7/s8/large-draft"]).nodes[0].draft == "target"
    for name in ("/T0.7/s8/ours", "a100-32b/T0.7/s8/chain-no-ngram"):
        with pytest.raises(NotSimulated):
            world_of(known[name])


def test_an_error_is_a_share_of_what_was_measured() -> None:
    row = Measured("a100-32b/T0.7/s8/plain", 100.0)
    compared = compare(row, servings()[row.name], demo_book())
    assert compared.error == pytest.approx(compared.simulated / 100.0 - 1.0)
    assert abs(compared.error) > MOST_ERROR, "an engine of half the speed would be noticed"
