import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.identity.envelope import seal
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.record import (
    DOMAIN,
    MAX_LIFETIME_S,
    CoordinatorRecord,
    RecordError,
    open_record,
    seal_record,
)

COORDINATOR = Identity(bytes(32))
NOW = 1000.0


def record(**changes: object) -> CoordinatorRecord:
    plain = CoordinatorRecord(
        peer_id=COORDINATOR.peer_id,
        addresses=(f"/ip4/127.0.0.1/tcp/4001/p2p/{COORDINATOR.peer_id}",),
        target_models=("demo-target",),
        tokenizer_fingerprints=(b"f" * 16,),
        draft_models=("demo-draft",),
        load=0.5,
        sequence=3,
        expires_at_s=NOW + 60,
    )
    return msgspec.structs.replace(plain, **changes)


def test_record_comes_back_as_it_was_sealed() -> None:
    assert open_record(seal_record(COORDINATOR, record()), NOW) == record()


@pytest.mark.parametrize(
    ("expires_at_s", "reason"),
    [
        (NOW, "expired"),
        (-math.inf, "expired"),
        (math.nan, "expired"),
        (NOW + MAX_LIFETIME_S + 1, "too long"),
        (math.inf, "too long"),
    ],
)
def test_record_outside_its_time_is_refused(expires_at_s: float, reason: str) -> None:
    sealed = seal_record(COORDINATOR, record(expires_at_s=expires_at_s))
    with pytest.raises(RecordError, match=reason):
        open_record(sealed, NOW)


def test_record_signed_by_another_is_refused() -> None:
    forger = Identity(bytes([9] * 32))
    with pytest.raises(ValueError, match="own record"):
        seal_record(forger, record())
    with pytest.raises(RecordError, match="but signed by"):
        open_record(seal(forger, DOMAIN, msgspec.msgpack.encode(record())), NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": ("a",) * 17},
        {"target_models": ("m" * 257,)},
        {"load": 1.5},
        {"sequence": -1},
        {"tokenizer_fingerprints": (bytes(65),)},
    ],
)
def test_law7_bounded_record_fields(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a valid record"):
        seal_record(COORDINATOR, record(**changes))
    with pytest.raises(RecordError):
        open_record(seal(COORDINATOR, DOMAIN, msgspec.msgpack.encode(record(**changes))), NOW)


@given(st.binary(max_size=300))
def test_law4_bytes_signed_or_not_are_one_record_error(payload: bytes) -> None:
    for data in (payload, seal(COORDINATOR, DOMAIN, payload)):
        with pytest.raises(RecordError):
            open_record(data, NOW)


@given(st.data())
def test_law4_bytes_of_a_record_changed_anywhere_are_refused(data: st.DataObject) -> None:
    sealed = bytearray(seal_record(COORDINATOR, record()))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError):
        open_record(bytes(sealed), NOW)
