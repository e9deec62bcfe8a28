"""The overlay over real sockets on loopback: one test per hazard that can be provoked."""

import socket
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import psutil
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay.libp2p_host import open_overlay
from specedge_p2p.overlay.libp2p_swarm import HANDSHAKE_S
from specedge_p2p.overlay.libp2p_yamux import MAX_BUFFERED_BYTES, MAX_STREAMS
from specedge_p2p.overlay.ports import Link, LinkClosed, Overlay, OverlayError
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import MAX_FRAME_BYTES

PROTOCOL = "/test/1"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def server(
    identity: Identity | None = None, listen: Sequence[str] = (LOOPBACK,)
) -> AbstractAsyncContextManager[Overlay]:
    return open_overlay(identity or Identity.generate(), listen=listen, bootstrap=(), dht="server")


def client() -> AbstractAsyncContextManager[Overlay]:
    return open_overlay(Identity.generate(), listen=(), bootstrap=(), dht="client")


async def echo(link: Link) -> None:
    while True:
        await link.send(await link.receive())


async def silent(link: Link) -> None:
    await trio.sleep_forever()


async def check_alive(overlay: Overlay, address: str) -> None:
    """An honest peer is still served, and quickly."""
    with trio.fail_after(5):
        async with overlay.dial(address, PROTOCOL) as link:
            await link.send(b"alive")
            assert await link.receive() == b"alive"


def port_of(overlay: Overlay) -> int:
    return int(overlay.addresses[0].split("/")[4])


@asynccontextmanager
async def echo_server() -> AsyncIterator[tuple[Overlay, str]]:
    with trio.fail_after(30):
        async with server() as overlay, overlay.serve(PROTOCOL, echo):
            yield overlay, overlay.addresses[0]


@asynccontextmanager
async def foreign_host(
    *, plaintext: bool = False, mplex: bool = False
) -> AsyncIterator[tuple[Any, Any]]:
    """A peer that runs plain libp2p with its defaults, or with what we must not accept."""
    keys = create_new_key_pair()
    security: dict[Any, Any] = {
        TProtocol(NOISE_ID): NoiseTransport(keys, noise_privkey=x25519_pair().private_key)
    }
    if plaintext:
        security = {TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(keys)}
    muxers = {TProtocol(MPLEX_PROTOCOL_ID): Mplex} if mplex else {TProtocol(YAMUX_ID): Yamux}
    host = new_host(key_pair=keys, sec_opt=security, muxer_opt=muxers)
    swarm = host.get_network()
    swarm.set_resource_manager(None)
    swarm.retry_config.max_retries = 0
    async with host.run(listen_addrs=[]):
        try:
            yield host, swarm
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await host.close()


async def connect_foreign(swarm: Any, address: str) -> Any:  # noqa: ANN401
    place, _, peer = address.partition("/p2p/")
    connection = await swarm.dial_addr(Multiaddr(place), ID.from_string(peer))
    return connection.muxed_conn


async def test_frames_go_both_ways_between_authenticated_peers() -> None:
    identity = Identity.generate()
    peers = []

    async def note_peer(link: Link) -> None:
        peers.append(link.peer_id)
        await echo(link)

    with trio.fail_after(20):
        async with server(identity) as ours, ours.serve(PROTOCOL, note_peer), client() as theirs:
            assert ours.peer_id == identity.peer_id
            assert port_of(ours) != 0
            assert theirs.addresses == ()
            async with theirs.dial(ours.addresses[0], PROTOCOL) as link:
                assert link.peer_id == identity.peer_id
                for size in (0, 1, 1000, MAX_FRAME_BYTES):
                    await link.send(b"x" * size)
                    assert len(await link.receive()) == size
                with pytest.raises(OverlayError, match="at most"):
                    await link.send(bytes(MAX_FRAME_BYTES + 1))
            assert peers == [theirs.peer_id]


async def test_dial_fails_clearly() -> None:
    stranger = Identity.generate().peer_id
    async with echo_server() as (ours, address), client() as theirs:
        place = address.partition("/p2p/")[0]
        for wrong, protocol, reason in (
            (f"{place}/p2p/{stranger}", PROTOCOL, f"another peer answers there, {ours.peer_id}$"),
            (f"/ip4/127.0.0.1/tcp/1/p2p/{stranger}", PROTOCOL, "nothing listens there"),
            (address, "/other/1", "does not speak"),
            (place, PROTOCOL, "names no peer"),
        ):
            with pytest.raises(OverlayError, match=reason):
                async with theirs.dial(wrong, protocol):
                    pass
        with pytest.raises(OverlayError, match="itself"):
            async with ours.dial(address, PROTOCOL):
                pass
        with pytest.raises(OverlayError, match="served already"):
            async with ours.serve(PROTOCOL, echo):
                pass
        await check_alive(theirs, address)


async def test_a_web_server_is_no_peer() -> None:
    """It answers the first bytes with an error page and hangs up."""

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(1024)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        await stream.aclose()

    async with trio.open_nursery() as nursery, client() as theirs:
        (listener,) = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), refuse, 0)
        port = listener.socket.getsockname()[1]
        with pytest.raises(OverlayError, match="no peer of this network"):
            async with theirs.dial(
                f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.generate().peer_id}", PROTOCOL
            ):
                pass
        nursery.cancel_scope.cancel()


async def test_peer_that_was_away_can_be_dialled_again_at_once() -> None:
    identity = Identity.generate()
    with trio.fail_after(30):
        async with client() as theirs:
            async with server(identity) as ours, ours.serve(PROTOCOL, echo):
                address = ours.addresses[0]
                await check_alive(theirs, address)
            with pytest.raises(OverlayError):
                await check_alive(theirs, address)
            listen = address.partition("/p2p/")[0]
            async with server(identity, [listen]) as ours, ours.serve(PROTOCOL, echo):
                await check_alive(theirs, address)


async def test_law4_handler_that_raises_costs_its_own_link_only() -> None:
    async def fail(link: Link) -> None:
        raise RuntimeError(await link.receive())

    with trio.fail_after(20):
        async with (
            server() as ours,
            ours.serve(PROTOCOL, echo),
            ours.serve("/fail/1", fail),
            client() as theirs,
            theirs.dial(ours.addresses[0], PROTOCOL) as good,
        ):
            for _ in range(3):
                async with theirs.dial(ours.addresses[0], "/fail/1") as link:
                    await link.send(b"x")
                    with pytest.raises(LinkClosed):
                        await link.receive()
            await good.send(b"x")
            assert await good.receive() == b"x"


async def test_handler_that_returns_closes_the_link() -> None:
    async def say_one(link: Link) -> None:
        await link.send(b"one")

    with trio.fail_after(20):
        async with (
            server() as ours,
            ours.serve(PROTOCOL, say_one),
            client() as theirs,
            theirs.dial(ours.addresses[0], PROTOCOL) as link,
        ):
            assert await link.receive() == b"one"
            with pytest.raises(LinkClosed):
                await link.receive()


@pytest.mark.parametrize("offer", ["plaintext", "mplex"])
async def test_law4_peer_that_offers_only_what_is_unsafe_is_rejected(offer: str) -> None:
    async with echo_server() as (_, address), client() as theirs:
        async with foreign_host(plaintext=offer == "plaintext", mplex=offer == "mplex") as (
            _,
            swarm,
        ):
            with pytest.raises(BaseLibp2pError):
                await connect_foreign(swarm, address)
        await check_alive(theirs, address)


async def test_law4_bytes_that_break_noise_close_that_connection_only() -> None:
    async with echo_server() as (_, address), client() as theirs, foreign_host() as (_, swarm):
        muxed = await connect_foreign(swarm, address)
        raw = muxed.secured_conn.conn.read_writer.read_write_closer
        await raw.write(struct.pack(">H", 64) + b"\xaa" * 64)
        with trio.fail_after(5):
            await muxed.event_closed.wait()
        await check_alive(theirs, address)


async def test_law4_bytes_before_any_handshake_are_harmless() -> None:
    async with echo_server() as (ours, address), client() as theirs:
        for garbage in (b"\0" * 10_000, b"\xff" * 10_000, b"GET / HTTP/1.1\r\n\r\n"):
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(ours))
            async with stream:
                await stream.send_all(garbage)
        await check_alive(theirs, address)


async def open_raw(host: Any, swarm: Any, address: str) -> Any:  # noqa: ANN401
    await connect_foreign(swarm, address)
    peer = ID.from_string(address.partition("/p2p/")[2])
    return await host.new_stream(peer, [TProtocol(PROTOCOL)])


async def test_law4_bytes_announcing_a_huge_frame_end_the_link() -> None:
    ended: list[BaseException] = []

    async def note_end(link: Link) -> None:
        try:
            await link.receive()
        except (LinkClosed, ProtocolError) as error:
            ended.append(error)

    with trio.fail_after(20):
        async with (
            server() as ours,
            foreign_host() as (host, swarm),
            ours.serve(PROTOCOL, note_end),
        ):
            stream = await open_raw(host, swarm, ours.addresses[0])
            await stream.write(b"\xff\xff\xff\xff")
            with pytest.raises(BaseLibp2pError):
                await stream.read(1)
    assert [type(error) for error in ended] == [ProtocolError]


async def test_law7_bounded_silent_sockets_keep_nobody_out() -> None:
    async with echo_server() as (ours, address), client() as theirs:
        sockets = [await trio.open_tcp_stream("127.0.0.1", port_of(ours)) for _ in range(400)]
        await check_alive(theirs, address)
        # and they do not stay for ever
        with trio.fail_after(HANDSHAKE_S + 5):
            for stream in sockets:
                try:
                    while await stream.receive_some(4096):
                        pass
                except trio.BrokenResourceError:
                    pass
                await stream.aclose()
        await check_alive(theirs, address)


async def test_places_of_closed_connections_are_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("specedge_p2p.overlay.libp2p_swarm.MAX_CONNECTIONS", 5)
    async with echo_server() as (_, address):
        for _ in range(12):
            async with client() as theirs:
                await check_alive(theirs, address)


async def test_law7_bounded_receive_window_that_is_ignored_ends_the_connection() -> None:
    process = psutil.Process()
    with trio.fail_after(40):
        async with (
            server() as ours,
            ours.serve(PROTOCOL, silent),
            foreign_host() as (host, swarm),
        ):
            stream = await open_raw(host, swarm, ours.addresses[0])
            muxed = stream.muxed_conn
            before = process.memory_info().rss
            body = bytes(60_000)
            header = struct.pack("!BBHII", 0, 0, 0, stream.muxed_stream.stream_id, len(body))
            num_sent = 0
            try:
                while num_sent < 100 * MAX_BUFFERED_BYTES and not muxed.event_closed.is_set():
                    await muxed._write_frame(header + body)
                    num_sent += len(body)
            except (BaseLibp2pError, OSError):
                pass
            assert num_sent < 20 * MAX_BUFFERED_BYTES
            assert process.memory_info().rss - before < 64 * 1024 * 1024
            async with (
                ours.serve("/echo/1", echo),
                client() as theirs,
                theirs.dial(ours.addresses[0], "/echo/1") as link,
            ):
                await link.send(b"x")
                assert await link.receive() == b"x"


async def test_law7_bounded_streams_of_one_connection() -> None:
    async with echo_server() as (_, address), client() as theirs, foreign_host() as (_, swarm):
        muxed = await connect_foreign(swarm, address)
        with trio.move_on_after(10):
            for number in range(4 * MAX_STREAMS):
                if muxed.event_closed.is_set():
                    break
                try:
                    await muxed._write_frame(struct.pack("!BBHII", 0, 1, 1, 1001 + 2 * number, 0))
                except (BaseLibp2pError, OSError):
                    break
            await muxed.event_closed.wait()
        assert muxed.event_closed.is_set()
        await check_alive(theirs, address)


async def test_cancelled_calls_do_not_poison_the_connection() -> None:
    async with echo_server() as (_, address), client() as theirs:
        async with theirs.dial(address, PROTOCOL) as link:
            num_sent = 0
            for number in range(300):
                with trio.move_on_after(0.0005 * (number % 4)):
                    await link.send(b"y" * 30_000)
                    num_sent += 1
                with trio.move_on_after(0.0005):
                    assert await link.receive() == b"y" * 30_000
                    num_sent -= 1
            for _ in range(num_sent):
                assert await link.receive() == b"y" * 30_000
        async with theirs.dial(address, PROTOCOL) as link:
            await link.send(b"fine")
            assert await link.receive() == b"fine"


async def test_port_is_free_and_no_task_is_left_after_the_end() -> None:
    def num_tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    with trio.fail_after(30):
        before = num_tasks()
        for ending in ("return", "raise", "cancel"):
            scope = trio.CancelScope()
            port = 0
            try:
                with scope:
                    async with server() as ours, ours.serve(PROTOCOL, echo), client() as theirs:
                        port = port_of(ours)
                        await check_alive(theirs, ours.addresses[0])
                        if ending == "raise":
                            raise KeyError("mine")
                        if ending == "cancel":
                            scope.cancel()
                            await trio.sleep_forever()
            except* KeyError:
                assert ending == "raise"
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            await trio.sleep(0.3)
            assert num_tasks() == before, ending


async def test_second_overlay_on_one_port_is_refused() -> None:
    async with echo_server() as (ours, _):
        with pytest.raises(OverlayError, match="cannot listen"):
            async with server(listen=[f"/ip4/127.0.0.1/tcp/{port_of(ours)}"]):
                pass


async def test_malformed_configuration_is_refused_before_anything_starts() -> None:
    identity = Identity.generate()
    opens = partial(open_overlay, identity, dht="client")
    for wrong in (
        opens(listen=["/ip4/127.0.0.1/udp/0"], bootstrap=[]),
        opens(listen=[], bootstrap=["/ip4/127.0.0.1/tcp/1"]),
    ):
        with pytest.raises(OverlayError, match="address"):
            async with wrong:
                pass


@pytest.mark.alone
async def test_round_trips_are_quick() -> None:
    """No 250 ms before a connection, no 40 ms of Nagle, no polling."""
    async with echo_server() as (_, address), client() as theirs:
        start_s = time.perf_counter()
        async with theirs.dial(address, PROTOCOL) as link:
            assert time.perf_counter() - start_s < 0.2
            times = []
            for _ in range(200):
                start_s = time.perf_counter()
                await link.send(b"x" * 200)
                await link.receive()
                times.append(time.perf_counter() - start_s)
        assert sorted(times)[100] < 0.02
