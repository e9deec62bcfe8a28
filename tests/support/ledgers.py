"""Contributions and identities for ledger tests."""

from functools import cache

from coordinator.ledger.ports import Contribution
from specedge_p2p.identity.keys import Identity
from specedge_p2p.names import PeerId, SessionId

COORDINATOR = Identity(b"\1" * 32)


@cache
def node(number: int) -> PeerId:
    """The peer id of a node, the same in every process."""
    return Identity(number.to_bytes(4) + b"\2" * 28).peer_id


def contribution(
    session: int, number: int, segment: int, num_accepted: int = 3, num_credited: int | None = None
) -> Contribution:
    return Contribution(
        session_id=SessionId(f"s{session}"),
        peer_id=node(number),
        segment=segment,
        num_accepted=num_accepted,
        num_credited=num_accepted if num_credited is None else num_credited,
    )
