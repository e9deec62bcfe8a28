"""Small worlds: the figures that can be worked out by hand, and what must hold of all others."""

from dataclasses import replace

import pytest

from tests.simulator.events import LinkQuality
from tests.simulator.profiles import ENGINES, NodeCosts
from tests.simulator.results import Result
from tests.simulator.traces import TraceBook, demo_book
from tests.simulator.world import NodePlan, World, WorldPlan

QUICK = WorldPlan(num_sessions=4, num_tokens=1000)
NGRAM = replace(QUICK, has_ngram=True)
PLAIN = replace(QUICK, has_ngram=False)


@pytest.fixture(scope="module")
def book() -> TraceBook:
    return demo_book()


def run(plan: WorldPlan, book: TraceBook) -> Result:
    """Simulate; law 1 holds in every world: whoever drafts, the tokens are the recorded ones."""
    world = World(plan, book)
    result = world.run()
    assert world.num_finished > 0
    assert world.wrong == []
    return result


def test_plain_decoding_takes_a_step_per_token(book: TraceBook) -> None:
    result = run(PLAIN, book)
    step_s = ENGINES["h200-14b"].step_time_s(4)
    assert result.full_tokens_per_s == pytest.approx(4 / step_s, rel=0.005)
    assert result.itl_s == pytest.approx(step_s, rel=0.005)
    assert result.rows_per_token == result.share_by_ngram == result.sent_per_token == 0
    assert result.idle_share < 0.01


def test_prompts_take_time_when_they_are_not_free(book: TraceBook) -> None:
    free = run(PLAIN, book)
    paid = run(replace(PLAIN, is_prefill_free=False), book)
    assert 0.98 * free.tokens_per_s < paid.tokens_per_s < 0.995 * free.tokens_per_s


def test_the_same_seed_gives_the_same_figures_and_another_one_others(book: TraceBook) -> None:
    plan = replace(NGRAM, nodes=(NodePlan(quality=LinkQuality(0.015, jitter=0.2)),) * 2)
    first = run(plan, book)
    assert run(plan, book) == first
    assert run(replace(plan, seed=2), book) != first


def test_volunteers_help_more_the_nearer_they_are(book: TraceBook) -> None:
    engine = ENGINES["a100-32b"]
    alone = run(replace(NGRAM, engine=engine), book)
    near, far = (
        run(replace(NGRAM, engine=engine, nodes=(NodePlan(quality=LinkQuality(rtt)),) * 4), book)
        for rtt in (0.015, 0.1)
    )
    assert near.tokens_per_s > 1.4 * alone.tokens_per_s
    assert near.tokens_per_s > 1.1 * far.tokens_per_s
    assert near.share_by_node > 0.3


def test_law3_nodes_that_are_never_heard_change_nothing(book: TraceBook) -> None:
    deaf = NodePlan(quality=LinkQuality(round_trip_s=10_000.0))
    assert run(replace(NGRAM, nodes=(deaf,) * 4), book).tokens_per_s == pytest.approx(
        run(NGRAM, book).tokens_per_s, rel=1e-9
    )


def test_law3_bad_links_and_stalling_nodes_never_cost_more_than_their_help(
    book: TraceBook,
) -> None:
    alone = run(NGRAM, book)
    bad = NodePlan(
        costs=NodeCosts(0.02, stall_rate=0.02, stall_s=0.3),
        quality=LinkQuality(0.06, jitter=0.4, loss=0.05, churn_s=0.4, away_s=0.2),
    )
    assert run(replace(NGRAM, nodes=(bad,) * 3), book).tokens_per_s > 0.97 * alone.tokens_per_s


def test_a_node_that_comes_back_goes_on_with_its_sessions(book: TraceBook) -> None:
    churning = NodePlan(quality=LinkQuality(0.015, churn_s=0.5, away_s=0.05))
    world = World(replace(NGRAM, nodes=(churning,) * 4, num_tokens=1500), book)
    world.run()
    assert world.wrong == []
    assert sum(node.desk.tally.num_resumed for node in world.nodes) > 0


def test_a_better_draft_model_is_worth_more(book: TraceBook) -> None:
    plan = replace(NGRAM, engine=ENGINES["a100-32b"])
    small, large = (
        run(replace(plan, nodes=(NodePlan(draft=draft),) * 4), book).tokens_per_s
        for draft in ("small", "large")
    )
    assert large > 1.1 * small
