"""Addresses of peers: what they must look like, and which of ours others can use."""

import errno
import socket
from collections.abc import Sequence
from typing import Final

from multiaddr import Multiaddr

from specedge_p2p.identity.keys import parse_peer_id
from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import OverlayError

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - named, not bound
_MAX_ADDRESS: Final = 256
FULL_FORM: Final = (
    "/ip4/1.2.3.4/tcp/4011/p2p/12D3KooW..., as the coordinator prints it at its start"
)


def is_plain_tcp(address: str) -> bool:
    """Whether an address is one that this overlay dials: /ip4|ip6|dns.../tcp/port, no more."""
    parts = address.split("/")
    return (
        len(address) <= _MAX_ADDRESS
        and len(parts) == 5
        and parts[1] in ("ip4", "ip6", "dns", "dns4", "dns6")
        and parts[3] == "tcp"
        and parts[4].isascii()
        and parts[4].isdecimal()
    )


def split_address(address: str) -> tuple[str, PeerId]:
    """`/ip4/1.2.3.4/tcp/4001` and the peer id of a full address, else OverlayError."""
    place, found, peer = address.partition("/p2p/")
    try:
        if not is_plain_tcp(place):
            raise ValueError
        Multiaddr(place)
    except ValueError:
        raise OverlayError(f"{address!r} is not an address of the form {FULL_FORM}") from None
    if not found:
        raise OverlayError(f"address {address!r} names no peer: the form is {FULL_FORM}")
    try:
        return place, parse_peer_id(peer)
    except ValueError:
        raise OverlayError(
            f"address {address!r} does not end with a whole peer id: copy it as the coordinator"
            " prints it at its start"
        ) from None


def parse_listen(address: str) -> Multiaddr:
    try:
        if not is_plain_tcp(address):
            raise ValueError
        return Multiaddr(address)
    except ValueError:
        raise OverlayError(
            f"{address!r} is not an address of the form /ip4/0.0.0.0/tcp/4011 to listen on"
        ) from None


def check_ports(listen: Sequence[str]) -> None:
    """Refuse a taken port.

    libp2p listens with SO_REUSEPORT: two processes of one user would share a port, and each would
    get half of the connections.
    """
    for address in listen:
        _, kind, host, _, port = address.split("/")
        family = socket.AF_INET6 if kind == "ip6" else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
                if int(port):
                    probe.listen(1)
            except OSError as error:
                advice = ""
                if error.errno == errno.EADDRINUSE:
                    other = address.rpartition("/")[0]
                    advice = f"; give another --listen, such as {other}/0 for a free port"
                raise OverlayError(
                    f"cannot listen on {address}: {error.strerror}{advice}"
                ) from None


def reachable(addresses: Sequence[Multiaddr]) -> list[Multiaddr]:
    """Addresses worth telling others: "every interface" is none, so it becomes real ones."""
    real: dict[str, None] = {}
    for address in addresses:
        _, kind, host, _, port = str(address).split("/")
        if host in _EVERYWHERE:
            for own in (_outward_host(kind), _EVERYWHERE[host]):
                if own is not None:
                    real[f"/{kind}/{own}/tcp/{port}"] = None
        else:
            real[str(address)] = None
    return [Multiaddr(text) for text in real]


def _outward_host(kind: str) -> str | None:
    """This machine's own address on the way to the internet; asks the routing table, sends none."""
    family, probe = (
        (socket.AF_INET6, "2001:4860:4860::8888") if kind == "ip6" else (socket.AF_INET, "8.8.8.8")
    )
    with socket.socket(family, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect((probe, 53))
        except OSError:
            return None
        return str(outward.getsockname()[0])
