"""Several participants at once over real sockets: discovery, many links, a peer that freezes."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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


async def run_coordinator(
    identity: Identity,
    bootstrap: tuple[str, ...],
    expires_in_s: float,
    task_status: Any,  # noqa: ANN401 - the installed stubs of trio lack its type
) -> None:
    async with open_overlay(
        identity, listen=[LOOPBACK], bootstrap=bootstrap, dht="server"
    ) as overlay:
        sealed = sealed_record(identity, overlay, expires_in_s=expires_in_s)
        async with serve_record(overlay, lambda: sealed):
            task_status.started(overlay.addresses)
            await announce(overlay)


async def run_node(bootstrap: tuple[str, ...], expected: set[str]) -> None:
    async with open_overlay(
        Identity.generate(), listen=[], bootstrap=bootstrap, dht="client"
    ) as overlay:
        found: set[str] = set()
        while found != expected:
            coordinators = await find_coordinators(overlay, now_s=lambda: NOW)
            found = {each.record.peer_id for each in coordinators}
            await trio.sleep(0.1)


async def test_coordinators_and_nodes_find_each_other_through_one_address() -> None:
    """Two honest coordinators and one whose record has expired; three nodes, one bootstrap."""
    one, two, expired = (Identity.generate() for _ in range(3))
    with trio.fail_after(60):
        async with trio.open_nursery() as coordinators:
            start = coordinators.start
            bootstrap = await start(run_coordinator, one, (), 60.0)
            await start(run_coordinator, two, bootstrap, 60.0)
            await start(run_coordinator, expired, bootstrap, -1.0)
            async with trio.open_nursery() as nodes:
                for _ in range(3):
                    nodes.start_soon(run_node, bootstrap, {one.peer_id, two.peer_id})
            coordinators.cancel_scope.cancel()


async def test_law7_bounded_cost_of_300_links() -> None:
    """Both ends live in this process, so the memory counted is that of 300 clients too."""
    process = psutil.Process()
    opened, are_all_open = trio.Semaphore(0), trio.Event()

    async def run_client(address: str) -> None:
        async with (
            open_overlay(Identity.generate(), listen=[], bootstrap=[], dht="client") as client,
            client.dial(address, PROTOCOL) as link,
        ):
            opened.release()
            await are_all_open.wait()
            await link.send(b"x" * 200)
            assert await link.receive() == b"x" * 200

    with trio.fail_after(120):
        async with (
            open_overlay(
                Identity.generate(), listen=[LOOPBACK], bootstrap=[], dht="server"
            ) as server,
            server.serve(PROTOCOL, echo),
        ):
            before = process.memory_info().rss
            async with trio.open_nursery() as clients:
                for _ in range(100):
                    # in groups, or the handshakes of this one core outlast their deadline
                    for _ in range(3):
                        clients.start_soon(run_client, server.addresses[0])
                    for _ in range(3):
                        await opened.acquire()
                are_all_open.set()
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
