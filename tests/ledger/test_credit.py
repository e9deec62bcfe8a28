import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.ledger.credit import (
    MINT,
    Transfer,
    idempotency_key,
    micro_credits,
    node_account,
    transfer,
)
from coordinator.ledger.ports import Contribution
from specedge_p2p.names import PeerId, SessionId


def contribution(
    accepted: int = 5, credited: int = 3, session: str = "s-1", peer: str = "12D3", segment: int = 2
) -> Contribution:
    return Contribution(SessionId(session), PeerId(peer), segment, accepted, credited)


def test_a_credited_token_earns_one_credit() -> None:
    assert micro_credits(contribution()) == 3_000_000
    assert transfer(contribution()) == Transfer(MINT, "node:12D3", 3_000_000, "draft/s-1/12D3/2")


def test_nothing_credited_moves_nothing() -> None:
    assert micro_credits(contribution(credited=0)) == 0
    assert transfer(contribution(credited=0)) is None


def test_own_sessions_earn_nothing() -> None:
    assert micro_credits(contribution(), is_own=True) == 0
    assert transfer(contribution(), is_own=True) is None


@pytest.mark.parametrize(("accepted", "credited"), [(3, 4), (3, -1), (-1, -1)])
def test_counts_that_cannot_be_are_refused(accepted: int, credited: int) -> None:
    with pytest.raises(ValueError, match="accepted tokens"):
        micro_credits(contribution(accepted, credited))
    with pytest.raises(ValueError, match="accepted tokens"):
        transfer(contribution(accepted, credited), is_own=True)


BASE58 = st.text("123ABCabc", min_size=1)


@given(
    st.tuples(st.text(min_size=1), BASE58, st.integers(0)),
    st.tuples(st.text(min_size=1), BASE58, st.integers(0)),
)
def test_law5_receipt_replays_share_a_key_and_nothing_else_does(
    one: tuple[str, str, int], other: tuple[str, str, int]
) -> None:
    keys = [
        idempotency_key(contribution(session=session, peer=peer, segment=segment))
        for session, peer, segment in (one, other)
    ]
    assert (keys[0] == keys[1]) == (one == other)


def test_the_key_names_the_fact_and_not_its_size() -> None:
    assert idempotency_key(contribution(9, 9)) == idempotency_key(contribution(1, 1))
    assert node_account(PeerId("x")) != MINT
