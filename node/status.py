"""The live status line: what a volunteer wants to know at a glance."""

import math
from dataclasses import dataclass

from node.worker import WorkerStats
from specedge_p2p.plural import counted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The worker's figures at one moment."""

    at_s: float
    stats: WorkerStats


@dataclass(frozen=True, slots=True)
class Connection:
    """Whether there is a link to a coordinator; if not, when coordinators are asked again.

    `next_try_s` is None while they are asked, too.
    """

    is_linked: bool
    next_try_s: float | None = None


def status_line(
    before: Snapshot, now: Snapshot, connection: Connection, *, is_paused: bool = False
) -> str:
    """One line from two snapshots; rates are over the time between them."""
    stats = now.stats
    elapsed_s = max(now.at_s - before.at_s, 1e-9)
    rate = (stats.num_accepted - before.stats.num_accepted) / elapsed_s
    share = stats.num_accepted / stats.num_committed if stats.num_committed else 0.0
    trip = "-" if stats.round_trip_s is None else f"{stats.round_trip_s * 1000:.0f} ms"
    parts = ["paused"] if is_paused else []
    if not connection.is_linked:
        parts.append(_not_connected(connection, now.at_s))
    elif not is_paused:
        parts.append("drafting" if stats.num_sessions else "waiting for work")
    parts += [
        counted(stats.num_sessions, "session"),
        f"{counted(stats.num_accepted, 'token')} accepted ({share:.0%} of those served)",
        f"{rate:.1f} tokens/s",
        f"round trip {trip}",
        counted(stats.num_receipts, "receipt"),
    ]
    if stats.num_bad_receipts:
        parts.append(counted(stats.num_bad_receipts, "bad receipt").upper())
    return " · ".join(parts)


def _not_connected(connection: Connection, now_s: float) -> str:
    if connection.next_try_s is None:
        return "not connected, asking for coordinators"
    return f"not connected, next try in {max(1, math.ceil(connection.next_try_s - now_s))} s"
