"""The live status line: what a volunteer wants to know at a glance."""

from dataclasses import dataclass

from node.worker import WorkerStats
from specedge_p2p.plural import counted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The worker's figures at one moment."""

    at_s: float
    stats: WorkerStats


def status_line(before: Snapshot, now: Snapshot, *, is_paused: bool = False) -> str:
    """One line from two snapshots; rates are over the time between them."""
    stats = now.stats
    elapsed_s = max(now.at_s - before.at_s, 1e-9)
    rate = (stats.num_accepted - before.stats.num_accepted) / elapsed_s
    share = stats.num_accepted / stats.num_committed if stats.num_committed else 0.0
    trip = "-" if stats.round_trip_s is None else f"{stats.round_trip_s * 1000:.0f} ms"
    parts = [
        "paused" if is_paused else "drafting" if stats.num_sessions else "waiting for work",
        counted(stats.num_sessions, "session"),
        f"{counted(stats.num_accepted, 'token')} accepted ({share:.0%} of those served)",
        f"{rate:.1f} tokens/s",
        f"round trip {trip}",
        counted(stats.num_receipts, "receipt"),
    ]
    if stats.num_bad_receipts:
        parts.append(counted(stats.num_bad_receipts, "bad receipt").upper())
    return " · ".join(parts)
