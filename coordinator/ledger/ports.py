"""What the rest of the coordinator may ask of the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specedge_p2p.names import PeerId, SessionId


@dataclass(frozen=True, slots=True)
class Contribution:
    """Accepted tokens of one node in one segment of one session; the unit of accounting.

    (session_id, peer_id, segment) is the idempotency key: recording it twice changes nothing.
    """

    session_id: SessionId
    peer_id: PeerId
    segment: int
    num_accepted: int
    num_credited: int
    """Accepted tokens that earn credit (those that the free n-gram guess alone lacked)."""


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt as it is kept and sent: an encoded signed envelope (identity/receipt.py)."""

    peer_id: PeerId
    sequence: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    num_transfers: int
    sum_micro_credits: int
    """Sum of all balances; 0 in a sound ledger."""
    accepted_by_node: dict[PeerId, int]
    micro_credits_by_node: dict[PeerId, int]


class Ledger(Protocol):
    """Append-only double-entry account."""

    async def record(self, contributions: Sequence[Contribution]) -> tuple[SignedReceipt, ...]:
        """Write transfers, contributions and receipts in one transaction; return new receipts.

        Returns only when they are durable. Duplicates are skipped. Not interrupted by cancellation
        once begun.
        """
        ...

    async def receipts_after(
        self, peer_id: PeerId, sequence: int, limit: int = 256
    ) -> tuple[SignedReceipt, ...]: ...

    async def summary(self) -> LedgerSummary: ...
