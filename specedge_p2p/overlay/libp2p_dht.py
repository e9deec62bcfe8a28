"""Provider records in a Kademlia DHT: who offers what, without a central list."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal

import trio
from libp2p.abc import IHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from specedge_p2p.overlay.addresses import is_plain_tcp
from specedge_p2p.overlay.ports import OverlayError

DhtMode = Literal["server", "client"]

MAX_KEY_BYTES: Final = 50
"""Servers reset lookups of longer keys."""
MAX_PROVIDERS: Final = 32
MAX_ADDRESSES: Final = 8
"""Of one provider."""
LOOKUP_S: Final = 10.0
"""For asking who offers a key."""
ADDRESSES_S: Final = 5.0
"""For asking where they are, all of them together: one that nobody knows costs no more."""
LOOKUPS_AT_ONCE: Final = 8


class ProviderRecords:
    """Announce and look up keys."""

    def __init__(self, host: IHost, dht: KadDHT) -> None:
        self._host = host
        self._dht = dht

    async def join(self, peer: ID) -> None:
        """A DHT peer is connected: learn from it whom else there is."""
        await self._dht.add_peer(peer, skip_server_mode_check=True)
        await self._dht.refresh_routing_table()

    async def provide(self, key: str) -> None:
        _check_key(key)
        with trio.move_on_after(LOOKUP_S):
            if await self._dht.provide(key):
                return
        raise OverlayError("no DHT peer has taken the announcement yet")

    async def find(self, key: str) -> tuple[str, ...]:
        """Addresses of providers, nearest answer first; unverified, maybe dead.

        Takes at most LOOKUP_S and ADDRESSES_S, whatever the peers that were asked do.
        """
        _check_key(key)
        found: list[PeerInfo] = []
        with trio.move_on_after(LOOKUP_S):
            # The DHT's own store answers from what it once saw and never asks again, so the
            # network is asked through an empty store; what is known here is added to it.
            lookup = ProviderStore(self._host, self._dht.peer_routing)
            found += await lookup.find_providers(_encoded(key), MAX_PROVIDERS)
        found += self._dht.provider_store.get_providers(_encoded(key))
        addresses: dict[str, list[Multiaddr]] = {}
        for info in found:
            addresses.setdefault(str(info.peer_id), []).extend(info.addrs)
        addresses.pop(str(self._host.get_id()), None)
        addresses = dict(list(addresses.items())[:MAX_PROVIDERS])
        await self._look_up([peer for peer in addresses if not addresses[peer]], addresses)
        return tuple(text for peer in addresses for text in _usable(peer, addresses[peer]))

    async def _look_up(self, peers: Sequence[str], into: dict[str, list[Multiaddr]]) -> None:
        """Fill in the addresses of those that somebody knows in time, the first ones first."""
        places = trio.Semaphore(LOOKUPS_AT_ONCE)

        async def look_up(peer: str) -> None:
            try:
                info = await self._dht.find_peer(ID.from_string(peer))
            finally:
                places.release()
            into[peer] = list(info.addrs) if info is not None else []

        with trio.move_on_after(ADDRESSES_S):
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    await places.acquire()
                    nursery.start_soon(look_up, peer)


@asynccontextmanager
async def running_dht(host: IHost, mode: DhtMode) -> AsyncIterator[ProviderRecords]:
    """Take part in the DHT. Only provider records are served: nobody may store values here."""
    dht_mode = DHTMode.SERVER if mode == "server" else DHTMode.CLIENT
    dht = KadDHT(host, dht_mode, enable_values=False)
    async with background_trio_service(dht):
        yield ProviderRecords(host, dht)


def _usable(peer: str, addresses: Sequence[Multiaddr]) -> list[str]:
    texts = (str(address).partition("/p2p/")[0] for address in addresses)
    usable = dict.fromkeys(f"{text}/p2p/{peer}" for text in texts if is_plain_tcp(text))
    return list(usable)[:MAX_ADDRESSES]


def _encoded(key: str) -> bytes:
    return key.encode()


def _check_key(key: str) -> None:
    if not 2 <= len(key.encode()) <= MAX_KEY_BYTES:
        raise OverlayError(f"a key has 2 to {MAX_KEY_BYTES} bytes")
