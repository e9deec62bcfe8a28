"""The DHT seen by a peer that asks: others may answer nothing, or with what nobody knows."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from trio.testing import MockClock

from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay import libp2p_dht
from specedge_p2p.overlay.libp2p_dht import ADDRESSES_S, LOOKUP_S, MAX_PROVIDERS, ProviderRecords

PLACE = "/ip4/192.0.2.1/tcp/4011"


def new_peer() -> ID:
    return ID.from_string(Identity.generate().peer_id)


class FakeDht:
    """Knows providers; where they are it says only of those in `places`, of others never."""

    peer_routing = None

    def __init__(self, providers: Sequence[PeerInfo], places: Sequence[ID] = ()) -> None:
        self.providers, self.places = list(providers), set(places)
        self.provider_store = self
        self.num_asked = 0

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        return self.providers

    async def find_peer(self, peer: ID) -> PeerInfo | None:
        self.num_asked += 1
        if peer not in self.places:
            await trio.sleep_forever()
        return PeerInfo(peer, [Multiaddr(PLACE)])


class SilentStore:
    """Stands in for the lookup in the network: nobody answers."""

    def __init__(self, *_: object) -> None: ...

    async def find_providers(self, key: bytes, count: int) -> list[PeerInfo]:
        return await trio.sleep_forever()


class FakeHost:
    def __init__(self) -> None:
        self.own = new_peer()

    def get_id(self) -> ID:
        return self.own


@pytest.fixture
def _silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_dht, "ProviderStore", SilentStore)


def records(dht: FakeDht) -> ProviderRecords:
    host: Any = FakeHost()
    routing: Any = dht
    return ProviderRecords(host, routing)


@pytest.mark.usefixtures("_silence")
async def test_law7_bounded_peers_that_nobody_knows_cost_one_deadline(
    autojump_clock: MockClock,
) -> None:
    here, found, nowhere = new_peer(), new_peer(), [new_peer() for _ in range(MAX_PROVIDERS)]
    infos = [PeerInfo(peer, []) for peer in (*nowhere[:3], found, *nowhere[3:])]
    infos.insert(2, PeerInfo(here, [Multiaddr(PLACE)]))
    dht = FakeDht(infos, places=[found])
    since = trio.current_time()
    addresses = await records(dht).find("a key")
    assert trio.current_time() - since <= LOOKUP_S + ADDRESSES_S
    assert addresses == (f"{PLACE}/p2p/{here}", f"{PLACE}/p2p/{found}")
    assert dht.num_asked < MAX_PROVIDERS


@pytest.mark.usefixtures("_silence")
async def test_who_is_known_is_not_looked_up(autojump_clock: MockClock) -> None:
    peers = [new_peer() for _ in range(MAX_PROVIDERS + 1)]
    dht = FakeDht([PeerInfo(peer, [Multiaddr(PLACE)]) for peer in peers])
    since = trio.current_time()
    addresses = await records(dht).find("a key")
    assert trio.current_time() - since <= LOOKUP_S
    assert addresses == tuple(f"{PLACE}/p2p/{peer}" for peer in peers[:MAX_PROVIDERS])
    assert dht.num_asked == 0
