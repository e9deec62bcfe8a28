"""Who may connect: limits on inbound connections, in all and per network address.

A connection is pending until its handshake is done. Where pending ones crowd each other the oldest
has to go: an honest handshake takes milliseconds, so the one that has been silent longest is the
least likely to be honest, and a flood of silent sockets keeps nobody out.
"""

import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    max_pending: int = 256
    max_pending_per_address: int = 32
    max_connections: int = 2000
    max_connections_per_address: int = 64
    """Established and pending; machines behind one router share an address."""


LOOPBACK: Final = "loopback"


class Place:
    """One inbound connection's place, from its arrival to its end."""

    def __init__(self, admission: "Admission", group: str, drop: Callable[[], None]) -> None:
        self._admission = admission
        self.group = group
        self.drop = drop

    def establish(self) -> None:
        """The handshake is done."""
        self._admission.pending.pop(self, None)

    def leave(self) -> None:
        self.establish()
        self._admission.counts[self.group] -= 1
        if not self._admission.counts[self.group]:
            del self._admission.counts[self.group]


class Admission:
    """Counts places and gives them out."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self.pending: dict[Place, None] = {}
        self.counts: Counter[str] = Counter()

    @property
    def num_places(self) -> int:
        return self.counts.total()

    def arrive(self, host: str | None, drop: Callable[[], None]) -> Place | None:
        """A place for a connection from `host` (None: unknown), or None where all are taken.

        `drop` is called if the connection is still pending when others need the place.
        """
        group = address_group(host)
        own = [place for place in self.pending if place.group == group]
        if group != LOOPBACK and len(own) >= self._limits.max_pending_per_address:
            self._drop(own[0])
        elif len(self.pending) >= self._limits.max_pending:
            self._drop(next(iter(self.pending)))
        if self.num_places >= self._limits.max_connections:
            return None
        if group != LOOPBACK and self.counts[group] >= self._limits.max_connections_per_address:
            return None
        place = Place(self, group, drop)
        self.pending[place] = None
        self.counts[group] += 1
        return place

    def _drop(self, place: Place) -> None:
        # Its task calls leave() a moment later; until then it still counts as a connection.
        del self.pending[place]
        place.drop()


def address_group(host: str | None) -> str:
    """What shares one limit: an IPv4 address, an IPv6 /64 network, or everything on loopback."""
    if host is None:
        return "unknown"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return LOOPBACK
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
