from math import inf, nan
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.identity.envelope import seal
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.receipt import (
    DOMAIN,
    FIRST_PREVIOUS,
    ReceiptBody,
    ReceiptError,
    check,
    issue,
    read_body,
    receipt_hash,
)
from specedge_p2p.names import PeerId, SessionId

COORDINATOR = Identity(bytes(32))
NODE = Identity(bytes([1] * 32))


def body(sequence: int = 1, previous: bytes = FIRST_PREVIOUS, **changes: Any) -> ReceiptBody:  # noqa: ANN401
    plain = ReceiptBody(
        coordinator=COORDINATOR.peer_id,
        node=NODE.peer_id,
        sequence=sequence,
        previous=previous,
        session_id=SessionId("s1"),
        segment=0,
        num_accepted=7,
        num_credited=5,
        micro_credits=5_000_000,
        issued_at_s=1000.0,
    )
    return msgspec.structs.replace(plain, **changes)


def checked(
    envelope: bytes,
    sequence: int | None = 1,
    previous: bytes | None = FIRST_PREVIOUS,
    node: PeerId = NODE.peer_id,
    coordinator: PeerId = COORDINATOR.peer_id,
) -> ReceiptBody:
    return check(
        envelope, node=node, coordinator=coordinator, previous_hash=previous, sequence=sequence
    )


def test_law5_receipt_chain_holds_from_the_first_to_the_last() -> None:
    previous = FIRST_PREVIOUS
    for sequence in range(1, 6):
        envelope = issue(COORDINATOR, body(sequence, previous))
        assert checked(envelope, sequence, previous) == body(sequence, previous)
        previous = receipt_hash(envelope)


def test_law5_receipt_left_out_or_moved_breaks_the_chain() -> None:
    first = issue(COORDINATOR, body())
    second = issue(COORDINATOR, body(2, receipt_hash(first)))
    third = issue(COORDINATOR, body(3, receipt_hash(second)))
    with pytest.raises(ReceiptError, match="number 3, not 2"):
        checked(third, 2, receipt_hash(first))
    with pytest.raises(ReceiptError, match="does not follow"):
        checked(third, 3, receipt_hash(first))
    assert checked(third, None, None).sequence == 3
    assert read_body(third).sequence == 3


def test_receipt_of_others_is_refused() -> None:
    envelope = issue(COORDINATOR, body())
    with pytest.raises(ReceiptError, match="another node"):
        checked(envelope, node=COORDINATOR.peer_id)
    with pytest.raises(ReceiptError, match="signed by"):
        checked(envelope, coordinator=NODE.peer_id)


def test_receipt_signed_by_another_than_it_says_is_refused() -> None:
    forged = seal(NODE, DOMAIN, msgspec.msgpack.encode(body()))
    with pytest.raises(ReceiptError, match="signed by"):
        checked(forged)
    with pytest.raises(ReceiptError, match="signed by"):
        read_body(forged)


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_accepted": -1}, {"segment": -1}, {"previous": b"short"}, {"session_id": "s" * 200}),
        *({"issued_at_s": at_s} for at_s in (nan, inf, -inf, 1e20, 2.0**33, -1.0)),
    ],
)
def test_receipt_beyond_its_limits_is_neither_issued_nor_taken(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a valid receipt"):
        issue(COORDINATOR, body(**changes))
    with pytest.raises(ReceiptError):
        read_body(seal(COORDINATOR, DOMAIN, msgspec.msgpack.encode(body(**changes))))


def test_receipt_that_credits_more_than_was_accepted_is_refused() -> None:
    with pytest.raises(ReceiptError, match="credits more"):
        checked(issue(COORDINATOR, body(num_credited=8)))


def test_receipt_in_anothers_name_is_not_issued() -> None:
    with pytest.raises(ValueError, match="own receipts"):
        issue(NODE, body())


@given(st.binary(max_size=300))
def test_law4_bytes_signed_or_not_are_one_receipt_error(payload: bytes) -> None:
    for data in (payload, seal(COORDINATOR, DOMAIN, payload)):
        with pytest.raises(ReceiptError):
            checked(data)
