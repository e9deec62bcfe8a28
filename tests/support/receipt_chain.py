"""Chains of receipts as a coordinator would sign them."""

from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.receipt import FIRST_PREVIOUS, ReceiptBody, issue, receipt_hash
from specedge_p2p.names import PeerId


def receipt_chain(signer: Identity, node: PeerId, count: int, num_accepted: int = 5) -> list[bytes]:
    receipts, previous = [], FIRST_PREVIOUS
    for sequence in range(1, count + 1):
        body = ReceiptBody(
            coordinator=signer.peer_id,
            node=node,
            sequence=sequence,
            previous=previous,
            session_id="s",
            segment=0,
            num_accepted=num_accepted,
            num_credited=num_accepted,
            micro_credits=num_accepted * 1_000_000,
            issued_at_s=float(sequence),
        )
        receipts.append(issue(signer, body))
        previous = receipt_hash(receipts[-1])
    return receipts
