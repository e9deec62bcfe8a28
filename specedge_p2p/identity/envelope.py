"""Signed envelopes: bytes that prove who wrote them, and for what purpose.

An envelope is a msgpack array (version, signer, payload, signature). The signature covers a domain
string, so that a signature given for one purpose is worthless for another. There is exactly one
encoding of an envelope: anything else is refused, so an envelope's hash identifies it.
"""

from typing import Final

import msgspec

from specedge_p2p.identity.keys import (
    SIGNATURE_BYTES,
    BadSignature,
    Identity,
    parse_peer_id,
    verify,
)
from specedge_p2p.names import PeerId

MAX_ENVELOPE_BYTES: Final = 32 * 1024
_VERSION: Final = 1
_CONTEXT: Final = b"specedge-envelope-1"


class EnvelopeError(Exception):
    """These bytes are not a validly signed envelope of this domain."""


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    signer: str
    payload: bytes
    signature: bytes


class Opened(msgspec.Struct, frozen=True):
    """What a valid envelope said, and who signed it."""

    peer_id: PeerId
    payload: bytes


_decoder = msgspec.msgpack.Decoder(_Envelope)


def seal(identity: Identity, domain: bytes, payload: bytes) -> bytes:
    """Sign `payload` for `domain`. ValueError if the envelope would be too large to be opened."""
    signature = identity.sign(_signed_bytes(domain, payload))
    envelope = _Envelope(_VERSION, identity.peer_id, payload, signature)
    data = msgspec.msgpack.encode(envelope)
    if len(data) > MAX_ENVELOPE_BYTES:
        raise ValueError(f"an envelope holds at most {MAX_ENVELOPE_BYTES} bytes, not {len(data)}")
    return data


def open_envelope(data: bytes, domain: bytes) -> Opened:
    """Check hostile bytes. Every defect is an EnvelopeError."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise EnvelopeError(f"larger than {MAX_ENVELOPE_BYTES} bytes")
    try:
        envelope = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"not an envelope: {error}") from None
    if envelope.version != _VERSION:
        raise EnvelopeError(f"version {envelope.version} is not known")
    if len(envelope.signature) != SIGNATURE_BYTES:
        raise EnvelopeError("the signature has the wrong length")
    if msgspec.msgpack.encode(envelope) != data:
        raise EnvelopeError("not in canonical form")
    try:
        peer_id = parse_peer_id(envelope.signer)
        verify(peer_id, _signed_bytes(domain, envelope.payload), envelope.signature)
    except (ValueError, BadSignature) as error:
        raise EnvelopeError(str(error)) from None
    return Opened(peer_id, envelope.payload)


def _signed_bytes(domain: bytes, payload: bytes) -> bytes:
    """The domain is length-prefixed, so no byte can move between it and the payload."""
    return b"".join((_CONTEXT, len(domain).to_bytes(4), domain, payload))
