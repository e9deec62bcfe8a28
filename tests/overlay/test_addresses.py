import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay.addresses import (
    check_ports,
    is_plain_tcp,
    parse_listen,
    reachable,
    split_address,
)
from specedge_p2p.overlay.ports import OverlayError

PEER = Identity(bytes(32)).peer_id


@pytest.mark.parametrize(
    "place", ["/ip4/1.2.3.4/tcp/1", "/ip6/::1/tcp/65535", "/dns4/host.example/tcp/4001"]
)
def test_full_address_is_split(place: str) -> None:
    assert split_address(f"{place}/p2p/{PEER}") == (place, PEER)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/ip4/1.2.3.4/tcp/1",
        f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{PEER}",
        f"/ip4/1.2.3.400/tcp/1/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/70000/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}x",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit",
        "/ip4/1.2.3.4/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    ],
)
def test_malformed_address_is_one_overlay_error(address: str) -> None:
    with pytest.raises(OverlayError, match="address"):
        split_address(address)


@given(st.text(max_size=100))
def test_law4_bytes_as_addresses_are_one_overlay_error(text: str) -> None:
    for address in (text, f"{text}/p2p/{PEER}", f"/ip4/{text}/tcp/1/p2p/{PEER}"):
        try:
            place, peer = split_address(address)
        except OverlayError:
            continue
        assert is_plain_tcp(place)
        assert peer == PEER


def test_listen_address_must_be_plain_tcp() -> None:
    assert str(parse_listen("/ip4/127.0.0.1/tcp/0")) == "/ip4/127.0.0.1/tcp/0"
    for wrong in ("/ip4/127.0.0.1/udp/0", "/ip4/localhost/tcp/0", "127.0.0.1:80"):
        with pytest.raises(OverlayError):
            parse_listen(wrong)


def test_taken_port_is_refused_although_it_could_be_shared() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(OverlayError, match="cannot listen"):
            check_ports([f"/ip4/127.0.0.1/tcp/{port}"])
    check_ports([f"/ip4/127.0.0.1/tcp/{port}", "/ip4/127.0.0.1/tcp/0"])


def test_everywhere_becomes_real_addresses() -> None:
    told = [str(address) for address in reachable([Multiaddr("/ip4/0.0.0.0/tcp/4001")])]
    assert "/ip4/127.0.0.1/tcp/4001" in told
    assert not any("0.0.0.0" in address for address in told)
    assert [str(a) for a in reachable([Multiaddr("/ip4/192.0.2.1/tcp/1")])] == [
        "/ip4/192.0.2.1/tcp/1"
    ]
