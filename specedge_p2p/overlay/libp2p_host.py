"""The overlay over libp2p: Noise over TCP, Yamux, Kademlia.

libp2p's defaults are not fit for an exposed host. What is closed, and where:

- `libp2p_swarm`: plaintext and mplex dialers (only Noise and only Yamux are offered), exceptions of
  stream handlers, inbound places that the library never gives back, unasked dials, listeners that
  outlive their host;
- `libp2p_yamux`: stalled peers, half-written frames, overrun windows, too many streams;
- `libp2p_dht`: stale and doubled answers;
- `admission`: silent and too many sockets;
- `addresses`: a port shared unseen with another process;
- `link_io`: framing, back-pressure, cancellation.
"""

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from specedge_p2p.identity.keys import Identity
from specedge_p2p.names import PeerId
from specedge_p2p.overlay.addresses import check_ports, parse_listen, split_address
from specedge_p2p.overlay.guard import run_guarded
from specedge_p2p.overlay.libp2p_dht import DhtMode, ProviderRecords, running_dht
from specedge_p2p.overlay.libp2p_reasons import cause, why_not
from specedge_p2p.overlay.libp2p_swarm import DIAL_S, MuxedStream, make_host, shut_down
from specedge_p2p.overlay.libp2p_yamux import ENVIRONMENT, abort_connection
from specedge_p2p.overlay.link_io import FramedLink
from specedge_p2p.overlay.ports import LinkHandler, Overlay, OverlayError

_log = logging.getLogger(__name__)

REDIAL_FIRST_S: Final = 1.0
REDIAL_LAST_S: Final = 30.0


class _LibP2POverlay:
    """See `ports.Overlay`."""

    def __init__(
        self,
        host: Any,  # noqa: ANN401
        records: ProviderRecords,
        identity: Identity,
        nursery: trio.Nursery,
    ) -> None:
        self._nursery = nursery
        self._host = host
        self._swarm = host.get_network()
        self._records = records
        self._identity = identity

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(str(address) for address in self._host.get_addrs())

    @asynccontextmanager
    async def serve(self, protocol: str, handler: LinkHandler) -> AsyncIterator[None]:
        if protocol in self._host.get_mux().get_protocols():
            raise OverlayError(f"{protocol} is served already")
        async with trio.open_nursery() as nursery:

            async def accept(stream: NetStream) -> None:
                # The library's own task ends here; the link lives in our nursery.
                nursery.start_soon(_serve_link, handler, stream, protocol)

            self._host.set_stream_handler(TProtocol(protocol), accept)
            try:
                yield
            finally:
                self._host.remove_stream_handler(TProtocol(protocol))
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def dial(self, address: str, protocol: str) -> AsyncIterator[FramedLink]:
        place, peer = split_address(address)
        if peer == self.peer_id:
            raise OverlayError("a peer does not dial itself")
        await self.connect(place, peer)
        stream = await self._open_stream(peer, protocol)
        link = FramedLink(peer, MuxedStream(stream))
        # In the overlay's nursery, so that the caller's exceptions come out as they are.
        self._nursery.start_soon(link.run)
        try:
            yield link
        finally:
            await link.aclose()

    async def provide(self, key: str) -> None:
        await self._records.provide(key)

    async def find_providers(self, key: str) -> tuple[str, ...]:
        return await self._records.find(key)

    async def connect(self, place: str, peer: PeerId) -> ID:
        """Have a connection to a peer. Raises OverlayError."""
        peer_id = ID.from_string(peer)
        if self.is_connected(peer_id):
            return peer_id
        try:
            with trio.fail_after(DIAL_S):
                await self._swarm.dial_addr(Multiaddr(place), peer_id)
        except trio.TooSlowError:
            raise OverlayError(f"{place} did not answer within {DIAL_S:g} s") from None
        except (BaseLibp2pError, OSError, ValueError) as error:
            raise OverlayError(f"no connection to {place}: {why_not(error)}") from error
        # Otherwise the library refuses for a minute to dial a peer that was away once.
        self._swarm._negative_peer_cache.evict(peer)
        self._host.get_peerstore().add_addrs(peer_id, [Multiaddr(place)], 3600)
        return peer_id

    def is_connected(self, peer_id: ID) -> bool:
        connections = self._swarm.get_connections(peer_id)
        return any(not connection.is_closed for connection in connections)

    async def _open_stream(self, peer: PeerId, protocol: str) -> NetStream:
        try:
            with trio.fail_after(DIAL_S):
                return cast(
                    "NetStream",
                    await self._host.new_stream(ID.from_string(peer), [TProtocol(protocol)]),
                )
        except trio.TooSlowError:
            # A connection that cannot open a stream is dead; the next dial makes a new one.
            for connection in self._swarm.get_connections(ID.from_string(peer)):
                await abort_connection(connection.muxed_conn)
            raise OverlayError(f"{peer} opened no stream within {DIAL_S:g} s") from None
        except (BaseLibp2pError, OSError) as error:
            raise OverlayError(f"{peer} does not speak {protocol}: {cause(error)}") from error


@asynccontextmanager
async def open_overlay(
    identity: Identity,
    *,
    listen: Sequence[str],
    bootstrap: Sequence[str],
    dht: DhtMode,
    announce: Sequence[str] = (),
) -> AsyncIterator[Overlay]:
    """Take part in the overlay while the context is open.

    Args:
        identity: this peer's key; its id is what others authenticate.
        listen: multiaddresses to listen on, `/ip4/0.0.0.0/tcp/4001`; none for a node that only
            dials. Port 0 takes a free one, see `Overlay.addresses`.
        bootstrap: addresses with `/p2p/<peer id>` of peers through which the DHT is entered; they
            are dialled in the background, for ever.
        dht: "server" for a peer that others can reach, "client" for one that only asks.
        announce: addresses to tell others instead of those listened on (behind a router).

    Raises OverlayError where an address is malformed or cannot be listened on.
    """
    _quiet_library()
    bootstrap_peers = [split_address(address) for address in bootstrap]
    listen_addresses = [parse_listen(address) for address in listen]
    check_ports(listen)
    host = make_host(identity, listen_addresses, [parse_listen(address) for address in announce])
    swarm = host.get_network()
    async with _running(host, listen_addresses):
        if len(swarm.listeners) != len(set(listen)):
            raise OverlayError(f"cannot listen on {', '.join(listen)}")
        async with running_dht(host, dht) as records, trio.open_nursery() as nursery:
            overlay = _LibP2POverlay(host, records, identity, nursery)
            for place, peer in bootstrap_peers:
                if peer != identity.peer_id:
                    nursery.start_soon(_stay_connected, overlay, records, place, peer)
            yield overlay
            nursery.cancel_scope.cancel()


async def _serve_link(handler: LinkHandler, stream: NetStream, protocol: str) -> None:
    link = FramedLink(PeerId(str(stream.muxed_conn.peer_id)), MuxedStream(stream))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await run_guarded(handler, link, protocol)


@asynccontextmanager
async def _running(host: Any, listen: Sequence[Multiaddr]) -> AsyncIterator[None]:  # noqa: ANN401
    try:
        async with host.run(listen_addrs=list(listen)):
            try:
                yield
            finally:
                await shut_down(host)
    except* BaseLibp2pError as group:
        raise OverlayError(f"the overlay failed: {cause(group.exceptions[0])}") from group


async def _stay_connected(
    overlay: _LibP2POverlay, records: ProviderRecords, place: str, peer: PeerId
) -> None:
    """Dial a bootstrap peer, and again whenever the connection is lost."""
    wait_s = REDIAL_FIRST_S
    is_joined = False
    while True:
        if is_joined and overlay.is_connected(ID.from_string(peer)):
            await trio.sleep(REDIAL_FIRST_S)
            continue
        is_joined = False
        try:
            peer_id = await overlay.connect(place, peer)
            with trio.move_on_after(DIAL_S) as scope:
                await records.join(peer_id)
            is_joined = not scope.cancelled_caught
            wait_s = REDIAL_FIRST_S
        except (OverlayError, BaseLibp2pError) as error:
            _log.info("bootstrap peer not reached: %s", error)
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, REDIAL_LAST_S)


def _quiet_library() -> None:
    """One abusive peer makes libp2p log thousands of lines; what matters is logged by us.

    Its own switch, LIBP2P_DEBUG, still works. The environment is read by the library at each use,
    so this is early enough.
    """
    if "LIBP2P_DEBUG" not in os.environ:
        logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
