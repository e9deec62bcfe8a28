"""The overlay over libp2p: Noise over TCP, Yamux, Kademlia.

libp2p's defaults are not fit for an exposed host. What is closed here, and where:
plaintext and mplex dialers (only Noise and only Yamux are offered), exceptions of stream handlers
(`_Guard`), silent and too many sockets (`admission`), inbound places that the library never gives
back (`_accept`), stalled peers, half-written frames and overrun windows (`libp2p_yamux`), framing
(`link_io`), listeners that outlive their host (`_shut_down`), a port shared unseen with another
process (`addresses.check_ports`), and stale DHT answers (`libp2p_dht`).
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from multiaddr import Multiaddr

from specedge_p2p.identity.keys import Identity
from specedge_p2p.names import PeerId
from specedge_p2p.overlay.addresses import check_ports, parse_listen, reachable, split_address
from specedge_p2p.overlay.admission import Admission, AdmissionLimits
from specedge_p2p.overlay.guard import run_guarded
from specedge_p2p.overlay.libp2p_dht import DhtMode, ProviderRecords, running_dht
from specedge_p2p.overlay.libp2p_yamux import ENVIRONMENT, BoundedYamux, abort_connection
from specedge_p2p.overlay.link_io import FramedLink
from specedge_p2p.overlay.ports import LinkClosed, LinkHandler, Overlay, OverlayError

_log = logging.getLogger(__name__)

HANDSHAKE_S: Final = 3.0
DIAL_S: Final = 5.0
"""For the connection, and again for opening the stream."""
MAX_CONNECTIONS: Final = 2000
"""Inbound and outbound together."""
REDIAL_FIRST_S: Final = 1.0
REDIAL_LAST_S: Final = 30.0
RESET_S: Final = 1.0
_CLOSE_S: Final = 5.0


class _MuxedStream:
    """A libp2p stream as `link_io.ByteStream`."""

    def __init__(self, stream: NetStream) -> None:
        self._stream = stream
        self._muxed = stream.muxed_stream
        self._has_ended = False

    async def read(self, max_bytes: int) -> bytes:
        try:
            return cast("bytes", await self._muxed.read(max_bytes))
        except EOFError:
            self._has_ended = True
            return b""
        except (BaseLibp2pError, OSError, trio.BrokenResourceError) as error:
            self._has_ended = True
            raise LinkClosed(f"the connection was lost: {error}") from None

    async def write(self, data: bytes) -> None:
        try:
            await self._muxed.write(data)
        except (BaseLibp2pError, OSError, trio.BrokenResourceError) as error:
            raise LinkClosed(f"the connection was lost: {error}") from None

    async def close(self) -> None:
        with trio.move_on_after(RESET_S):
            try:
                await self._stream.close()
                # The other end answers a close with its own; without that the stream would stay.
                while not self._has_ended:
                    await self.read(65536)
                return
            except (BaseLibp2pError, OSError, LinkClosed, trio.BrokenResourceError) as error:
                _log.debug("closing a stream: %s", error)
        await self.abort()

    async def abort(self) -> None:
        with trio.move_on_after(RESET_S) as scope:
            try:
                await self._stream.reset()
            except (BaseLibp2pError, OSError, trio.BrokenResourceError) as error:
                _log.debug("resetting a stream: %s", error)
        if scope.cancelled_caught:
            # Not even a reset gets through: the peer has stalled and loses its connection.
            await abort_connection(self._muxed.muxed_conn)


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
        link = FramedLink(peer, _MuxedStream(stream))
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
            raise OverlayError(f"cannot connect to {peer} at {place}: {_cause(error)}") from error
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
            raise OverlayError(f"{peer} does not speak {protocol}: {_cause(error)}") from error


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
    host = _new_host(identity, listen_addresses, [parse_listen(address) for address in announce])
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
    link = FramedLink(PeerId(str(stream.muxed_conn.peer_id)), _MuxedStream(stream))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await run_guarded(handler, link, protocol)


def _new_host(
    identity: Identity, listen: Sequence[Multiaddr], announce: Sequence[Multiaddr]
) -> Any:  # noqa: ANN401 - libp2p is opaque to the type checker
    keys = create_new_key_pair(identity.private_seed)
    noise = NoiseTransport(keys, noise_privkey=create_new_noise_pair().private_key)
    config = ConnectionConfig(
        max_connections=MAX_CONNECTIONS,
        min_connections=0,
        low_watermark=0,
        high_watermark=MAX_CONNECTIONS,
        max_connections_per_peer=8,
        inbound_upgrade_timeout=HANDSHAKE_S,
        outbound_upgrade_timeout=HANDSHAKE_S,
        inbound_stream_protocol_negotiation_timeout=HANDSHAKE_S,
        outbound_stream_protocol_negotiation_timeout=DIAL_S,
    )
    host = new_host(
        key_pair=keys,
        listen_addrs=list(listen) or None,
        sec_opt={TProtocol(NOISE_ID): noise},
        muxer_opt={TProtocol(YAMUX_ID): BoundedYamux},
        connection_config=config,
        disable_identify_address_discovery=True,
        addrs_factory=(lambda _: list(announce)) if announce else reachable,
    )
    swarm = host.get_network()
    # Its limits count connections that are gone; `admission` and `libp2p_yamux` keep ours.
    swarm.set_resource_manager(None)
    swarm.retry_config.max_retries = 0
    # It would dial whoever the peer store has heard of, up to half of MAX_CONNECTIONS.
    swarm.auto_connector.maybe_connect = _do_nothing
    swarm.upgrader.muxer_multistream.new_conn = _muxing(swarm.upgrader.muxer_multistream)
    swarm._handle_inbound_connection = _Acceptor(swarm).accept
    swarm.common_stream_handler = _guarded(swarm.common_stream_handler)
    return host


def _muxing(multistream: Any) -> Callable[[Any, ID], Awaitable[Any]]:  # noqa: ANN401
    """The library takes its own Yamux for the name "yamux", whatever class it was given."""

    async def new_connection(secured: Any, peer_id: ID) -> Any:  # noqa: ANN401
        protocol, muxer = await multistream._selector.select(
            secured, secured.is_initiator, multistream.negotiate_timeout
        )
        return multistream._annotate_connection(muxer(secured, peer_id), secured, protocol)

    return new_connection


async def _do_nothing() -> None:
    await trio.lowlevel.checkpoint()


class _Acceptor:
    """Takes the place of the swarm's own accept step, which never gives a place back."""

    def __init__(self, swarm: Any) -> None:  # noqa: ANN401
        self._swarm = swarm
        self._admission = Admission(AdmissionLimits(max_connections=MAX_CONNECTIONS))

    async def accept(self, stream: Any, listener: Multiaddr) -> None:  # noqa: ANN401
        """Run one inbound connection; the listener closes the socket when this returns."""
        with trio.CancelScope() as scope:
            place = self._admission.arrive(_remote_host(stream), scope.cancel)
            if place is None:
                _log.warning("too many connections from %s; one refused", _remote_host(stream))
                return
            try:
                raw = RawConnection(stream, False)
                muxed = await self._swarm.upgrade_inbound_raw_conn(raw, listener)
                place.establish()
                await muxed.event_closed.wait()
            except (BaseLibp2pError, OSError, trio.BrokenResourceError) as error:
                _log.debug("inbound connection refused: %s", error)
            finally:
                place.leave()


def _guarded(handler: Callable[[NetStream], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """No exception of any stream handler, the library's own included, may end the host."""

    async def run(stream: NetStream) -> None:
        try:
            await handler(stream)
        except* Exception as group:  # noqa: BLE001 - see above
            _log.debug("a stream of %s failed: %r", stream.muxed_conn.peer_id, group.exceptions)
            await _MuxedStream(stream).abort()

    return run


@asynccontextmanager
async def _running(host: Any, listen: Sequence[Multiaddr]) -> AsyncIterator[None]:  # noqa: ANN401
    try:
        async with host.run(listen_addrs=list(listen)):
            try:
                yield
            finally:
                await _shut_down(host)
    except* BaseLibp2pError as group:
        raise OverlayError(f"the overlay failed: {_cause(group.exceptions[0])}") from group


async def _shut_down(host: Any) -> None:  # noqa: ANN401
    """Close listeners and connections ourselves.

    The library leaves listeners open, and says good-bye to one connection after the other, which a
    single stalled peer could hold up.
    """
    swarm = host.get_network()
    with trio.CancelScope(shield=True):
        with trio.move_on_after(_CLOSE_S):
            for listener in list(swarm.listeners.values()):
                await listener.close()
        async with trio.open_nursery() as nursery:
            for connection in swarm.get_connections():
                nursery.start_soon(abort_connection, connection.muxed_conn)
        with trio.move_on_after(_CLOSE_S):
            await host.close()


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


def _remote_host(stream: Any) -> str | None:  # noqa: ANN401
    # The library's own method knows only IPv4.
    try:
        return str(stream.stream.socket.getpeername()[0])
    except OSError:
        return None


def _cause(error: BaseException) -> str:
    """The innermost reason, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
