"""Receipts: what a coordinator signs about a node's accepted tokens, chained per node.

Each receipt carries the hash of the one before it, so a node that keeps its receipts can prove a
whole history, and a coordinator can neither drop nor reorder one unseen.
"""

import hashlib
from typing import Annotated, Final

import msgspec

from specedge_p2p.identity.envelope import EnvelopeError, open_envelope, seal
from specedge_p2p.identity.keys import Identity
from specedge_p2p.names import PeerId

DOMAIN: Final = b"specedge/receipt/1"
FIRST_PREVIOUS: Final = bytes(32)
"""`previous` of a chain's first receipt."""

_Text = Annotated[str, msgspec.Meta(max_length=128)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Date = Annotated[float, msgspec.Meta(ge=0, lt=2**33)]
"""Seconds since 1970 up to the year 2242: what every calendar takes. NaN is not among them."""
_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class ReceiptError(Exception):
    """This receipt is forged, for somebody else, or does not continue the chain."""


class ReceiptBody(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """What is signed. `sequence` counts a node's receipts of this coordinator from 1."""

    coordinator: _Text
    node: _Text
    sequence: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    previous: _Hash
    session_id: _Text
    segment: _Count
    num_accepted: _Count
    num_credited: _Count
    micro_credits: _Count
    issued_at_s: _Date


_decoder = msgspec.msgpack.Decoder(ReceiptBody)


def issue(identity: Identity, body: ReceiptBody) -> bytes:
    """Sign a receipt. ValueError if it is not this coordinator's own or could not be checked."""
    if body.coordinator != identity.peer_id:
        raise ValueError("a coordinator signs only its own receipts")
    payload = msgspec.msgpack.encode(body)
    try:
        _decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a valid receipt: {error}") from None
    return seal(identity, DOMAIN, payload)


def check(
    envelope: bytes,
    *,
    node: PeerId,
    coordinator: PeerId,
    previous_hash: bytes | None,
    sequence: int | None,
) -> ReceiptBody:
    """Check a receipt from a peer and return what it says. Every defect is a ReceiptError.

    Args:
        envelope: hostile bytes.
        node: whose receipt it must be.
        coordinator: who must have signed it.
        previous_hash: `receipt_hash` of the receipt before; FIRST_PREVIOUS for the first; None
            where the chain is checked elsewhere.
        sequence: the number it must carry; None likewise.
    """
    body = _open(envelope)
    if body.coordinator != coordinator:
        raise ReceiptError(f"signed by {body.coordinator}, not by {coordinator}")
    if body.node != node:
        raise ReceiptError("issued to another node")
    if sequence is not None and body.sequence != sequence:
        raise ReceiptError(f"has number {body.sequence}, not {sequence}")
    if previous_hash is not None and body.previous != previous_hash:
        raise ReceiptError("does not follow the receipt before it")
    return body


def read_body(envelope: bytes) -> ReceiptBody:
    """What a receipt says, signature checked, for whomever it is. Raises ReceiptError."""
    return _open(envelope)


def receipt_hash(envelope: bytes) -> bytes:
    """BLAKE2b of the envelope, 32 bytes: what the next receipt carries as `previous`."""
    return hashlib.blake2b(envelope, digest_size=32).digest()


def _open(envelope: bytes) -> ReceiptBody:
    try:
        opened = open_envelope(envelope, DOMAIN)
        body = _decoder.decode(opened.payload)
    except (EnvelopeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptError(str(error)) from None
    if opened.peer_id != body.coordinator:
        raise ReceiptError(f"signed by {opened.peer_id}, not by {body.coordinator}")
    if body.num_credited > body.num_accepted:
        raise ReceiptError("credits more tokens than were accepted")
    return body
