"""Several participants at once over real sockets: discovery, many links, a peer that freezes."""

import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import psutil
import pytest
import trio

from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.record import CoordinatorRecord, seal_record
from specedge_p2p.overlay import libp2p_yamux
from specedge_p2p.overlay.discovery import announce, find_coordinators, serve_record
from specedge_p2p.overlay.libp2p_host import open_overlay
from specedge_p2p.overlay.ports import Link, LinkClosed, Overlay
from specedge_p2p.wire.messages import MAX_FRAME_BYTES

PROTOCOL = "/test/1"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
NOW = 1_000_000.0

FROZEN_PEER = """
import sys, trio
from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay.libp2p_host import open_overlay

async def echo(link):
    while True:
        await link.send(await link.receive())

async def main():
    async with open_overlay(
        Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"], bootstrap=[], dht="server"
    ) as overlay, overlay.serve("/test/1", echo):
        print(overlay.addresses[0], flush=True)
        await trio.sleep(60)

trio.run(main)
"""


async def echo(link: Link) -> None:
    while True:
        await link.send(await link.receive())


def sealed_record(identity: Identity, overlay: Overlay, *, expires_in_s: float = 60.0) -> bytes:
    return seal_record(
        identity,
        CoordinatorRecord(
            peer_id=identity.peer_id,
            addresses=overlay.addresses,
            target_models=("toy",),
            tokenizer_fingerprints=(b"f",),
            draft_models=("toy",),
            load=0.0,
            sequence=1,
            expires_at_s=NOW + expires_in_s,
        ),
    )


async def test_coordinators_and_nodes_find_each_other_through_one_address() -> None:
    """Two honest coordinators and one whose record has expired; three nodes, one bootstrap."""
    honest = [Identity.generate(), Identity.generate()]
    expired = Identity.generate()
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        bootstrap: tuple[str, ...] = ()
        with trio.fail_after(15):
            for identity in (*honest, expired):
                overlay = await stack.enter_async_context(
                    open_overlay(identity, listen=[LOOPBACK], bootstrap=bootstrap, dht="server")
                )
                bootstrap = bootstrap or overlay.addresses
                seconds = -1.0 if identity is expired else 60.0
                sealed = sealed_record(identity, overlay, expires_in_s=seconds)
                await stack.enter_async_context(serve_record(overlay, partial(bytes, sealed)))
                nursery.start_soon(announce, overlay)
            nodes = [
                await stack.enter_async_context(
                    open_overlay(Identity.generate(), listen=[], bootstrap=bootstrap, dht="client")
                )
                for _ in range(3)
            ]
        with trio.fail_after(10):
            for node in nodes:
                found: set[str] = set()
                while found != {identity.peer_id for identity in honest}:
                    coordinators = await find_coordinators(node, now_s=lambda: NOW)
                    found = {each.record.peer_id for each in coordinators}
                    await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_law7_bounded_cost_of_300_links() -> None:
    process = psutil.Process()
    with trio.fail_after(60):
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(
                open_overlay(Identity.generate(), listen=[LOOPBACK], bootstrap=[], dht="server")
            )
            await stack.enter_async_context(server.serve(PROTOCOL, echo))
            before = process.memory_info().rss
            links: list[Link] = []
            for _ in range(300):
                client = await stack.enter_async_context(
                    open_overlay(Identity.generate(), listen=[], bootstrap=[], dht="client")
                )
                links.append(
                    await stack.enter_async_context(client.dial(server.addresses[0], PROTOCOL))
                )
            for link in links:
                await link.send(b"x" * 200)
            for link in links:
                assert await link.receive() == b"x" * 200
            assert process.memory_info().rss - before < 300 * 1024 * 1024


async def test_frozen_peer_is_noticed_and_loses_its_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process is stopped, its kernel still acknowledges: only deadlines can tell."""
    monkeypatch.setattr(libp2p_yamux, "WRITE_STALL_S", 2.0)
    script = tmp_path / "peer.py"
    script.write_text(FROZEN_PEER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(  # noqa: ASYNC220 - a fork takes no time that matters
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as peer:
        try:
            assert peer.stdout is not None
            address = peer.stdout.readline().strip()
            with trio.fail_after(40):
                async with open_overlay(
                    Identity.generate(), listen=[], bootstrap=[], dht="client"
                ) as overlay:
                    await _watch_it_freeze(overlay, address, peer)
        finally:
            peer.kill()


async def _watch_it_freeze(overlay: Overlay, address: str, peer: subprocess.Popen[str]) -> None:
    async with overlay.dial(address, PROTOCOL) as link:
        await link.send(b"x")
        assert await link.receive() == b"x"
        peer.send_signal(signal.SIGSTOP)
        # A caller's deadline on a read works, and costs nothing.
        await link.send(b"y")
        with trio.move_on_after(0.5) as scope:
            await link.receive()
        assert scope.cancelled_caught
        # Whoever keeps sending finds the connection closed instead of hanging for ever.
        with trio.fail_after(25), pytest.raises(LinkClosed):
            await _send_for_ever(link)
        start_s = trio.current_time()
    assert trio.current_time() - start_s < 5


async def _send_for_ever(link: Link) -> None:
    while True:
        await link.send(bytes(MAX_FRAME_BYTES))
