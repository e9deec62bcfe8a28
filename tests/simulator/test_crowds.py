"""Many nodes that come and go: few sessions vertex by vertex, many on recorded outcomes."""

import pytest

from tests.simulator.crowd import crowd as make_crowd
from tests.simulator.modes import plan_of
from tests.simulator.outcomes import KINDS, NOBODY, Crowd, Trails, record_trails
from tests.simulator.profiles import ENGINES
from tests.simulator.traces import TraceBook, demo_book
from tests.simulator.world import World, WorldPlan


@pytest.fixture(scope="module")
def book() -> TraceBook:
    return demo_book()


@pytest.fixture(scope="module")
def trails(book: TraceBook) -> Trails:
    return record_trails(book, ENGINES["h200-14b"], 100, 32, num_tokens=1200)


def test_law1_and_law3_in_a_crowd_of_all_kinds(book: TraceBook) -> None:
    base = WorldPlan(ENGINES["a100-32b"], num_sessions=4, num_tokens=800)
    nodes = make_crowd(200, seed=5, level_s=0.01, churn_s=20.0)
    world = World(plan_of("H", base, nodes), book)
    result = world.run()
    assert world.wrong == []
    assert world.num_breaks > 10
    assert result.share_by_node > 0.05
    alone = World(plan_of("EN", base, ()), book).run()
    assert result.full_tokens_per_s > 0.97 * alone.full_tokens_per_s


def test_trails_tell_good_nodes_from_bad_ones(trails: Trails) -> None:
    assert set(trails) == {NOBODY, *KINDS}
    means = {
        kind: sum(o.num_tokens for trail in some for o in trail) / sum(map(len, some))
        for kind, some in trails.items()
    }
    assert means["near"] > means["slow"] > 1.1 * means[NOBODY]
    assert means["near"] > 1.5 * means["useless"]
    assert all(o.num_source_rows == 0 for trail in trails[NOBODY] for o in trail)


def test_a_crowd_on_trails_serves_everybody(book: TraceBook, trails: Trails) -> None:
    alone = Crowd(book, trails, ENGINES["h200-14b"], 100, 0, 32, churn_s=3.0)
    helped = Crowd(book, trails, ENGINES["h200-14b"], 100, 150, 32, churn_s=3.0)
    for crowd in (alone, helped):
        crowd.run(3.0)
        assert crowd.num_finished > 20
        assert max(crowd.gaps_s) < 1.5, "nobody starves"
    assert helped.num_breaks > 0
    assert helped.share_drafted > 0.9
    assert helped.num_tokens > 1.1 * alone.num_tokens
