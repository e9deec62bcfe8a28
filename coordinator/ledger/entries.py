"""What both ledgers share: which contributions may be booked, and how receipts are chained."""

from collections.abc import Sequence

from coordinator.ledger.credit import micro_credits
from coordinator.ledger.ports import Contribution, SignedReceipt
from specedge_p2p.identity.keys import Identity, parse_peer_id
from specedge_p2p.identity.receipt import FIRST_PREVIOUS, ReceiptBody, issue, receipt_hash

MAX_TOKENS = 2**32
"""Per contribution: keeps every amount far inside 64 bits."""
MAX_SESSION_ID_LENGTH = 128
MAX_LATEST = 1000
"""Most receipts that `latest_receipts` shows."""


def validate(contributions: Sequence[Contribution]) -> None:
    """Refuse what could not be booked, before it can spoil a transaction. Raises ValueError."""
    for item in contributions:
        counts = (item.segment, item.num_accepted, item.num_credited)
        if any(type(count) is not int or not 0 <= count <= MAX_TOKENS for count in counts):
            raise ValueError(f"counts must be whole numbers from 0 to {MAX_TOKENS}: {item}")
        if item.num_credited > item.num_accepted:
            raise ValueError(f"more tokens credited than accepted: {item}")
        if not 0 < len(item.session_id) <= MAX_SESSION_ID_LENGTH or "\0" in item.session_id:
            raise ValueError(f"bad session id: {item}")
        parse_peer_id(item.peer_id)


class Chain:
    """The end of one node's chain of receipts."""

    def __init__(self, sequence: int = 0, digest: bytes = FIRST_PREVIOUS) -> None:
        self.sequence, self.digest = sequence, digest

    def add(self, identity: Identity, contribution: Contribution, now_s: float) -> SignedReceipt:
        """Sign the next receipt."""
        body = ReceiptBody(
            coordinator=identity.peer_id,
            node=contribution.peer_id,
            sequence=self.sequence + 1,
            previous=self.digest,
            session_id=contribution.session_id,
            segment=contribution.segment,
            num_accepted=contribution.num_accepted,
            num_credited=contribution.num_credited,
            micro_credits=micro_credits(contribution),
            issued_at_s=now_s,
        )
        envelope = issue(identity, body)
        self.sequence, self.digest = body.sequence, receipt_hash(envelope)
        return SignedReceipt(contribution.peer_id, body.sequence, envelope)
