"""The signed record by which a coordinator says what it serves and where."""

from typing import Annotated, Final

import msgspec

from specedge_p2p.identity.envelope import EnvelopeError, open_envelope, seal
from specedge_p2p.identity.keys import Identity

DOMAIN: Final = b"specedge/record/1"
MAX_LIFETIME_S: Final = 24 * 3600.0
"""A record that claims to live longer is refused, so a stale one cannot haunt the network."""

_Text = Annotated[str, msgspec.Meta(max_length=256)]
_Texts = Annotated[tuple[_Text, ...], msgspec.Meta(max_length=16)]
_Fingerprints = Annotated[
    tuple[Annotated[bytes, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=16)
]


class RecordError(Exception):
    """This record is forged, expired or not a record."""


class CoordinatorRecord(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a coordinator says of itself. Later versions may append fields with defaults."""

    peer_id: Annotated[str, msgspec.Meta(max_length=64)]
    addresses: _Texts
    """Multiaddresses; those without `/p2p/<peer id>` are not used."""
    target_models: _Texts
    tokenizer_fingerprints: _Fingerprints
    draft_models: _Texts
    """Draft models it suggests, best first."""
    load: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
    """Share of its session places that are taken."""
    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    """Rises with every record of this coordinator, restarts included."""
    expires_at_s: float
    """Unix seconds."""


_decoder = msgspec.msgpack.Decoder(CoordinatorRecord)


def seal_record(identity: Identity, record: CoordinatorRecord) -> bytes:
    """Sign a record. ValueError if it is somebody else's or breaks a limit."""
    if record.peer_id != identity.peer_id:
        raise ValueError("a coordinator signs only its own record")
    payload = msgspec.msgpack.encode(record)
    try:
        _decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a valid record: {error}") from None
    return seal(identity, DOMAIN, payload)


def open_record(data: bytes, now_s: float) -> CoordinatorRecord:
    """Check hostile bytes at the time `now_s` (Unix seconds). Every defect is a RecordError."""
    try:
        opened = open_envelope(data, DOMAIN)
        record = _decoder.decode(opened.payload)
    except (EnvelopeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(str(error)) from None
    if record.peer_id != opened.peer_id:
        raise RecordError(f"about {record.peer_id} but signed by {opened.peer_id}")
    # Written so that NaN fails too.
    if not now_s < record.expires_at_s:
        raise RecordError("has expired")
    if not record.expires_at_s <= now_s + MAX_LIFETIME_S:
        raise RecordError("claims to live too long")
    return record
