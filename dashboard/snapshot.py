"""What one glance at the dashboard shows, and its making."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import trio

from dashboard.queries import DashboardQueries
from specedge_p2p.names import PeerId
from specedge_p2p.views import ContributionPoint, NetworkView, ReceiptView

BUCKET_S = 10.0
NUM_BUCKETS = 60
MAX_SERIES = 7
MAX_ROWS = 200
NUM_RECEIPTS = 12
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Series:
    """Accepted tokens of one node, one number a bucket, oldest first."""

    name: str
    """A peer id, or `OTHERS` for the sum of the smaller ones."""
    num_accepted: list[int]


@dataclass(frozen=True, slots=True)
class Chart:
    start_s: float
    """Start of the first bucket, Unix seconds."""
    bucket_s: float
    series: list[Series]
    """Largest total first, `OTHERS` last."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    now_s: float
    network: NetworkView
    """Its lists are cut to `MAX_ROWS`; the counts below are whole."""
    num_nodes: int
    num_sessions: int
    chart: Chart
    receipts: tuple[ReceiptView, ...]


def chart(points: Sequence[ContributionPoint], start_s: float) -> Chart:
    """Sort points into the buckets from `start_s` on; what lies outside is left out."""
    rows: dict[PeerId, list[int]] = defaultdict(lambda: [0] * NUM_BUCKETS)
    for point in points:
        bucket = int((point.at_s - start_s) // BUCKET_S)
        if 0 <= bucket < NUM_BUCKETS:
            rows[point.peer_id][bucket] += point.num_accepted
    ranked = sorted(rows.items(), key=lambda row: (-sum(row[1]), row[0]))
    series = [Series(peer_id, counts) for peer_id, counts in ranked[:MAX_SERIES]]
    rest = [counts for _, counts in ranked[MAX_SERIES:]]
    if rest:
        series.append(Series(OTHERS, [sum(column) for column in zip(*rest, strict=True)]))
    return Chart(start_s, BUCKET_S, series)


class Feed:
    """Makes snapshots for any number of viewers, at most one per `period_s`."""

    def __init__(
        self, queries: DashboardQueries, clock: Callable[[], float], period_s: float
    ) -> None:
        self.period_s = period_s
        self._queries, self._clock = queries, clock
        self._lock = trio.Lock()
        self._made_at = float("-inf")
        self._latest = b""

    async def latest(self) -> bytes:
        """A snapshot as JSON, not older than one period."""
        async with self._lock:
            # A little less than a period, or a viewer that is early would see the last one again.
            if trio.current_time() - self._made_at >= 0.9 * self.period_s:
                self._latest = msgspec.json.encode(await self._make())
                self._made_at = trio.current_time()
        return self._latest

    async def _make(self) -> Snapshot:
        now_s = self._clock()
        start_s = (now_s // BUCKET_S - NUM_BUCKETS + 1) * BUCKET_S
        points = await self._queries.contributions(start_s, BUCKET_S)
        receipts = await self._queries.latest_receipts(NUM_RECEIPTS)
        network = self._queries.network()
        cut = replace(network, nodes=network.nodes[:MAX_ROWS], sessions=network.sessions[:MAX_ROWS])
        return Snapshot(
            now_s=now_s,
            network=cut,
            num_nodes=len(network.nodes),
            num_sessions=len(network.sessions),
            chart=chart(points, start_s),
            receipts=receipts,
        )
