"""What a node did, as one JSON object for whoever measures."""

from pathlib import Path

import msgspec

from node.settings import NodeSettings
from node.worker import WorkerStats
from specedge_p2p.lm.emulated import PaddingTally


class NodeReport(msgspec.Struct, frozen=True):
    """Totals of one node process.

    Args:
        draft_model: that it drafted with; "" when it left before one was loaded.
        num_links: links on which it was welcome.
        num_levels: levels run, empty ones too.
        num_sent: vertices proposed.
        num_accepted: tokens accepted, as the verdicts say.
        num_committed: tokens committed in its sessions, whoever guessed them.
        num_forwards, num_late, used_s, padded_s, over_s: the tally of the emulated device, see
            `specedge_p2p.lm.emulated`; 0 without one.
    """

    draft_model: str
    emulate: str
    stretch: float
    num_links: int
    num_levels: int
    num_sent: int
    num_accepted: int
    num_committed: int
    num_verdicts: int
    num_resumed: int
    num_forwards: int
    num_late: int
    used_s: float
    padded_s: float
    over_s: float


def write_report(
    file: Path,
    draft_model: str,
    settings: NodeSettings,
    stats: WorkerStats,
    num_links: int,
    tally: PaddingTally,
) -> None:
    """Raises OSError."""
    report = NodeReport(
        draft_model=draft_model,
        emulate=settings.emulate,
        stretch=settings.stretch,
        num_links=num_links,
        num_levels=stats.num_levels,
        num_sent=stats.num_sent,
        num_accepted=stats.num_accepted,
        num_committed=stats.num_committed,
        num_verdicts=stats.num_verdicts,
        num_resumed=stats.num_resumed,
        num_forwards=tally.num_forwards,
        num_late=tally.num_late,
        used_s=tally.used_s,
        padded_s=tally.padded_s,
        over_s=tally.over_s,
    )
    file.write_bytes(msgspec.json.encode(report) + b"\n")
