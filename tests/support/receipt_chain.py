"""Chains of receipts as a coordinator would sign them."""

import msgspec

from specedge_p2p.identity.envelope import seal
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.receipt import (
    DOMAIN,
    FIRST_PREVIOUS,
    ReceiptBody,
    issue,
    receipt_hash,
)
from specedge_p2p.names import PeerId


def dated_receipt(signer: Identity, node: PeerId, issued_at_s: float) -> bytes:
    """A chain's first receipt, rightly signed, of whatever date."""
    payload = msgspec.msgpack.encode(_body(signer, node, 1, FIRST_PREVIOUS, 5, issued_at_s))
    return seal(signer, DOMAIN, payload)


def receipt_chain(signer: Identity, node: PeerId, count: int, num_accepted: int = 5) -> list[bytes]:
    receipts, previous = [], FIRST_PREVIOUS
    for sequence in range(1, count + 1):
        body = _body(signer, node, sequence, previous, num_accepted, float(sequence))
        receipts.append(issue(signer, body))
        previous = receipt_hash(receipts[-1])
    return receipts


def _body(
    signer: Identity,
    node: PeerId,
    sequence: int,
    previous: bytes,
    num_accepted: int,
    issued_at_s: float,
) -> ReceiptBody:
    return ReceiptBody(
        coordinator=signer.peer_id,
        node=node,
        sequence=sequence,
        previous=previous,
        session_id="s",
        segment=0,
        num_accepted=num_accepted,
        num_credited=num_accepted,
        micro_credits=num_accepted * 1_000_000,
        issued_at_s=issued_at_s,
    )
