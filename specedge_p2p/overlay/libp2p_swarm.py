"""A libp2p host made fit to be exposed: what the library's options do not reach is replaced here.

The replaced parts are attributes of the host's own objects, so nothing outside it is changed. They
are pinned by the exact version in the project's dependencies and by a test for each.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
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
from specedge_p2p.overlay.addresses import reachable
from specedge_p2p.overlay.admission import Admission, AdmissionLimits
from specedge_p2p.overlay.libp2p_yamux import BoundedYamux, abort_connection
from specedge_p2p.overlay.ports import LinkClosed

_log = logging.getLogger(__name__)

HANDSHAKE_S: Final = 3.0
DIAL_S: Final = 5.0
"""For the connection, and again for opening the stream."""
MAX_CONNECTIONS: Final = 2000
"""Inbound and outbound together."""
RESET_S: Final = 1.0
_CLOSE_S: Final = 5.0


def make_host(
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
            await MuxedStream(stream).abort()

    return run


class MuxedStream:
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


async def shut_down(host: Any) -> None:  # noqa: ANN401
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


def _remote_host(stream: Any) -> str | None:  # noqa: ANN401
    # The library's own method knows only IPv4.
    try:
        return str(stream.stream.socket.getpeername()[0])
    except OSError:
        return None
