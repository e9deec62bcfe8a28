import json

import pytest
import trio
from trio.testing import MockClock

from dashboard.snapshot import BUCKET_S, MAX_ROWS, MAX_SERIES, NUM_BUCKETS, OTHERS, Feed, chart
from specedge_p2p.views import ContributionPoint
from tests.support.fake_network import FakeQueries, peer


def test_chart_sorts_points_into_buckets() -> None:
    points = [
        ContributionPoint(peer(1), 100.0, 3),
        ContributionPoint(peer(1), 100.0 + BUCKET_S, 4),
        ContributionPoint(peer(2), 100.0 + BUCKET_S, 9),
    ]
    made = chart(points, 100.0)
    assert [series.name for series in made.series] == [peer(2), peer(1)]
    assert made.series[1].num_accepted[:3] == [3, 4, 0]
    assert {len(series.num_accepted) for series in made.series} == {NUM_BUCKETS}


@pytest.mark.parametrize("at_s", [99.9, 100.0 + NUM_BUCKETS * BUCKET_S])
def test_chart_leaves_out_what_lies_outside(at_s: float) -> None:
    assert chart([ContributionPoint(peer(1), at_s, 3)], 100.0).series == []


def test_law7_bounded_chart_sums_small_nodes_up() -> None:
    points = [ContributionPoint(peer(i), 100.0, 1000 - i) for i in range(MAX_SERIES + 3)]
    made = chart(points, 100.0)
    assert len(made.series) == MAX_SERIES + 1
    assert made.series[-1].name == OTHERS
    total = sum(sum(series.num_accepted) for series in made.series)
    assert total == sum(point.num_accepted for point in points)


async def test_many_viewers_cost_one_snapshot_a_period(autojump_clock: MockClock) -> None:
    queries = FakeQueries(2)
    feed = Feed(queries, clock=lambda: 1000.0 + trio.current_time(), period_s=1)
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(feed.latest)
        await trio.sleep(1)
    assert queries.num_snapshots == 3


async def test_law7_bounded_lists_are_cut_and_counts_are_whole() -> None:
    feed = Feed(FakeQueries(MAX_ROWS + 5, MAX_ROWS + 7), clock=lambda: 1000.0, period_s=1)
    snapshot = json.loads(await feed.latest())
    assert len(snapshot["network"]["nodes"]) == MAX_ROWS
    assert len(snapshot["network"]["sessions"]) == MAX_ROWS
    assert (snapshot["num_nodes"], snapshot["num_sessions"]) == (MAX_ROWS + 5, MAX_ROWS + 7)


async def test_the_chart_ends_with_the_bucket_of_now() -> None:
    queries = FakeQueries(1)
    await Feed(queries, clock=lambda: 1234.5, period_s=1).latest()
    assert queries.asked == [(1230.0 - (NUM_BUCKETS - 1) * BUCKET_S, BUCKET_S)]
