"""Sessions and nodes for the tests of matching, and what a matching says of them."""

from collections.abc import Sequence
from dataclasses import replace

from coordinator.gateway.ports import Volunteers
from coordinator.scheduler.matching import Matching
from coordinator.scheduler.needs import Drafter, SessionNeed
from coordinator.scheduler.places import NodeOffer
from specedge_p2p.names import PeerId, SessionId


def drafter(
    name: str, age_s: float = 60.0, *, has_proposed: bool = True, is_late: bool = False
) -> Drafter:
    return Drafter(PeerId(name), age_s, has_proposed, is_late)


def need(
    name: str,
    volunteers: Volunteers = "any",
    nodes: Sequence[str | Drafter] = (),
    released: str = "",
) -> SessionNeed:
    return SessionNeed(
        SessionId(name),
        volunteers,
        tuple(drafter(node) if isinstance(node, str) else node for node in nodes),
        frozenset([PeerId(released)] if released else []),
    )


def offer(
    name: str, room: int = 8, round_trip_s: float | None = 0.02, **other: object
) -> NodeOffer:
    return replace(NodeOffer(PeerId(name), room, round_trip_s), **other)  # type: ignore[arg-type]


def come(matching: Matching) -> list[tuple[str, str]]:
    return [(a.session_id, a.peer_id) for a in matching.assignments]


def go(matching: Matching) -> list[tuple[str, str]]:
    return [(d.session_id, d.peer_id) for d in matching.dismissals]
