import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.identity.envelope import (
    MAX_ENVELOPE_BYTES,
    EnvelopeError,
    open_envelope,
    seal,
)
from specedge_p2p.identity.keys import Identity

ALICE = Identity(bytes(32))
BOB = Identity(bytes([1] * 32))


@given(st.binary(max_size=32), st.binary(max_size=1000))
def test_what_is_sealed_opens(domain: bytes, payload: bytes) -> None:
    opened = open_envelope(seal(ALICE, domain, payload), domain)
    assert (opened.peer_id, opened.payload) == (ALICE.peer_id, payload)


@given(st.binary(max_size=8), st.binary(max_size=8), st.binary(max_size=8))
def test_signature_for_one_domain_is_worthless_for_another(
    domain: bytes, other: bytes, payload: bytes
) -> None:
    envelope = seal(ALICE, domain, payload)
    if other != domain:
        with pytest.raises(EnvelopeError, match="not signed"):
            open_envelope(envelope, other)


@given(st.binary(max_size=400))
def test_law4_bytes_of_any_kind_are_one_envelope_error(data: bytes) -> None:
    with pytest.raises(EnvelopeError):
        open_envelope(data, b"d")


@given(st.data())
def test_law4_bytes_changed_anywhere_are_refused(data: st.DataObject) -> None:
    envelope = bytearray(seal(ALICE, b"d", b"payload"))
    position = data.draw(st.integers(0, len(envelope) - 1))
    envelope[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EnvelopeError):
        open_envelope(bytes(envelope), b"d")


@given(st.integers(0, 130), st.binary(min_size=1, max_size=3))
def test_law4_bytes_cut_or_added_are_refused(length: int, more: bytes) -> None:
    envelope = seal(ALICE, b"d", b"payload")
    for wrong in (envelope[:length], envelope + more):
        with pytest.raises(EnvelopeError):
            open_envelope(wrong, b"d")


def test_another_signer_cannot_be_claimed() -> None:
    version, _signer, payload, signature = msgspec.msgpack.decode(seal(ALICE, b"d", b"p"))
    forged = msgspec.msgpack.encode([version, BOB.peer_id, payload, signature])
    with pytest.raises(EnvelopeError, match="not signed by"):
        open_envelope(forged, b"d")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([2, ALICE.peer_id, b"p", bytes(64)], "version 2"),
        ([1, ALICE.peer_id, b"p", bytes(63)], "wrong length"),
        ([1, "nobody", b"p", bytes(64)], "peer id"),
        ([1, ALICE.peer_id, b"p", bytes(64), 1], "not an envelope"),
        ([1, ALICE.peer_id, b"p"], "not an envelope"),
    ],
)
def test_each_defect_has_its_reason(fields: list[object], reason: str) -> None:
    with pytest.raises(EnvelopeError, match=reason):
        open_envelope(msgspec.msgpack.encode(fields), b"d")


def test_an_envelope_has_one_encoding_only() -> None:
    envelope = seal(ALICE, b"d", b"p")
    wide = b"\xdc\x00\x04" + envelope[1:]  # the same array with a longer header
    assert msgspec.msgpack.decode(wide) == msgspec.msgpack.decode(envelope)
    with pytest.raises(EnvelopeError, match="canonical"):
        open_envelope(wide, b"d")


def test_law7_bounded_envelopes_both_ways() -> None:
    with pytest.raises(ValueError, match="at most"):
        seal(ALICE, b"d", bytes(MAX_ENVELOPE_BYTES))
    with pytest.raises(EnvelopeError, match="larger"):
        open_envelope(bytes(MAX_ENVELOPE_BYTES + 1), b"d")
