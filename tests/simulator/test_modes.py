"""The engine's own drafting, capped steps and both beside volunteers, in small worlds."""

from dataclasses import replace

import pytest

from tests.simulator.events import LinkQuality
from tests.simulator.models import USELESS
from tests.simulator.modes import plan_of
from tests.simulator.profiles import ENGINES
from tests.simulator.results import Result
from tests.simulator.traces import TraceBook, demo_book
from tests.simulator.world import NodePlan, World, WorldPlan

BASE = WorldPlan(engine=ENGINES["a100-32b"], num_sessions=4, num_tokens=1000)
NEAR = (NodePlan(quality=LinkQuality(0.015)),) * 4


@pytest.fixture(scope="module")
def book() -> TraceBook:
    return demo_book()


def run(mode: str, book: TraceBook, base: WorldPlan = BASE) -> Result:
    world = World(plan_of(mode, base, NEAR), book)
    result = world.run()
    assert world.num_finished > 0
    assert world.wrong == []
    return result


def test_modes_are_known_by_name(book: TraceBook) -> None:
    plan = plan_of("BN:3x4", BASE, NEAR)
    assert (plan.nodes, plan.has_ngram, plan.engine_draft) == ((), True, "small")
    assert plan.tree is not None
    assert (plan.tree.depth, plan.tree.width) == (3, 4)
    assert plan_of("C-", BASE, NEAR) == replace(BASE, nodes=NEAR, has_ngram=False)
    with pytest.raises(ValueError, match="no mode"):
        plan_of("X", BASE, NEAR)


def test_a_fixed_tree_takes_the_time_of_its_levels(book: TraceBook) -> None:
    result = run("B:3x2", book)
    costs = BASE.engine
    least_s = costs.step_time_s(4) + 3 * costs.level_s
    assert result.levels_per_step == pytest.approx(3.0, abs=0.01)
    assert least_s < result.gap95_s < 1.1 * least_s
    assert result.share_by_own > 0.5
    assert result.tokens_per_s > 1.5 * run("A", book).tokens_per_s


def test_the_engine_plans_levels_where_they_pay_and_none_where_they_do_not(
    book: TraceBook,
) -> None:
    alone = run("EN", book)
    assert alone.levels_per_step > 1.0
    assert alone.tokens_per_s > 1.1 * run("N", book).tokens_per_s
    dear = replace(BASE, engine=replace(BASE.engine, level_s=0.2))
    assert run("EN", book, dear).levels_per_step < 0.1


def test_volunteers_spare_the_engine_its_own_levels(book: TraceBook) -> None:
    helped = run("H", book)
    assert helped.levels_per_step < 0.6 * run("EN", book).levels_per_step
    assert helped.share_by_node > 1.5 * helped.share_by_own


def test_a_capped_step_takes_that_many_sessions(book: TraceBook) -> None:
    plan = replace(BASE, num_sessions=6, max_batch=2)
    world = World(plan_of("A", plan, ()), book)
    result = world.run()
    assert world.wrong == []
    assert result.full_tokens_per_s == pytest.approx(2 / BASE.engine.step_time_s(2), rel=0.01)
    assert result.gap95_s < 6 * BASE.engine.step_time_s(2)


def test_lock_step_is_slower_than_continuous_drafting_and_never_stalls(book: TraceBook) -> None:
    continuous = run("C-", book)
    for mode in ("L:4x16:4", "L:4x16:nopro:4", "L:3x8:2"):
        lockstep = run(mode, book)
        assert lockstep.tokens_per_s < continuous.tokens_per_s
        assert lockstep.gap95_s < 0.2, "nobody waits until a proposal is given up"
        assert lockstep.sent_per_token < 0.5 * continuous.sent_per_token


def test_law3_useless_volunteers_cost_nothing(book: TraceBook) -> None:
    few = replace(BASE, num_sessions=2, num_tokens=600)
    useless = (replace(NEAR[0], draft=USELESS),) * 2
    for mode, alone in (("C", "N"), ("H", "EN")):
        world = World(plan_of(mode, few, useless), book)
        result = world.run()
        assert world.wrong == []
        assert result.full_tokens_per_s > 0.97 * run(alone, book, few).full_tokens_per_s
