import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.record import CoordinatorRecord, seal_record
from specedge_p2p.overlay.discovery import (
    ASK_S,
    COORDINATOR_KEY,
    MAX_FILE_BYTES,
    MAX_KNOWN,
    FoundCoordinator,
    KnownCoordinators,
    announce,
    find_coordinators,
    serve_record,
)
from specedge_p2p.overlay.memory import MemoryNetwork, MemoryOverlay, address_of
from specedge_p2p.overlay.ports import RECORD_PROTOCOL, Link

NOW = 1_000_000.0
ONE, TWO, THREE, NODE = (Identity(bytes([number] * 32)) for number in range(4))


def record(identity: Identity, *, sequence: int = 1, expires_at_s: float = NOW + 60) -> bytes:
    return seal_record(
        identity,
        CoordinatorRecord(
            peer_id=identity.peer_id,
            addresses=(address_of(identity.peer_id),),
            target_models=("toy",),
            tokenizer_fingerprints=(b"f",),
            draft_models=("toy",),
            load=0.0,
            sequence=sequence,
            expires_at_s=expires_at_s,
        ),
    )


@asynccontextmanager
async def coordinator(
    network: MemoryNetwork, identity: Identity, sealed: bytes
) -> AsyncIterator[MemoryOverlay]:
    overlay = network.join(identity.peer_id)
    async with serve_record(overlay, lambda: sealed):
        await overlay.provide(COORDINATOR_KEY)
        yield overlay


async def find(
    overlay: MemoryOverlay, *by_hand: Identity, known: KnownCoordinators | None = None
) -> list[str]:
    found = await find_coordinators(
        overlay,
        by_hand=[address_of(identity.peer_id) for identity in by_hand],
        known=known,
        now_s=lambda: NOW,
    )
    return [each.record.peer_id for each in found]


async def test_nearest_comes_first_but_by_hand_before_all(autojump_clock: None) -> None:
    network = MemoryNetwork()
    node = network.join(NODE.peer_id)
    network.set_latency(NODE.peer_id, ONE.peer_id, 0.2)
    async with (
        coordinator(network, ONE, record(ONE)),
        coordinator(network, TWO, record(TWO)),
    ):
        assert await find(node) == [TWO.peer_id, ONE.peer_id]
        assert await find(node, ONE) == [ONE.peer_id, TWO.peer_id]


@pytest.mark.parametrize(
    ("sealed", "reason"),
    [
        (record(TWO), "handed it over"),
        (record(ONE, expires_at_s=NOW - 1), "expired"),
        (record(ONE, expires_at_s=NOW + 10**9), "too long"),
        (record(ONE)[:-1] + b"\0", "not signed"),
        (b"", "not an envelope"),
    ],
)
async def test_forged_or_expired_record_is_dropped_with_a_line(
    autojump_clock: None, caplog: pytest.LogCaptureFixture, sealed: bytes, reason: str
) -> None:
    network = MemoryNetwork()
    node = network.join(NODE.peer_id)
    async with coordinator(network, ONE, sealed), coordinator(network, THREE, record(THREE)):
        with caplog.at_level(logging.WARNING):
            assert await find(node) == [THREE.peer_id]
    assert reason in caplog.text


async def test_a_coordinator_whose_clock_was_set_back_is_found(
    autojump_clock: None, tmp_path: Path
) -> None:
    """Its records are numbered by its clock, and the node remembers it from before."""
    network = MemoryNetwork()
    node = network.join(NODE.peer_id)
    known = KnownCoordinators(tmp_path / "known.json")
    async with coordinator(network, ONE, record(ONE, sequence=5)):
        assert await find(node, known=known) == [ONE.peer_id]
    network.kill(ONE.peer_id)
    async with coordinator(network, ONE, record(ONE, sequence=4)):
        assert await find(node, known=KnownCoordinators(tmp_path / "known.json")) == [ONE.peer_id]


async def test_last_known_are_asked_when_the_dht_knows_nothing(
    autojump_clock: None, tmp_path: Path
) -> None:
    network = MemoryNetwork()
    node = network.join(NODE.peer_id)
    path = tmp_path / "deep" / "known.json"
    async with coordinator(network, ONE, record(ONE)):
        await find(node, known=KnownCoordinators(path))
        network.providers.clear()
        assert await find(node, known=KnownCoordinators(path)) == [ONE.peer_id]
        assert await find(node) == []


async def test_dead_and_silent_coordinators_cost_bounded_time(autojump_clock: None) -> None:
    network = MemoryNetwork()
    node = network.join(NODE.peer_id)

    async def silent(link: Link) -> None:
        await trio.sleep_forever()

    two = network.join(TWO.peer_id)
    async with two.serve(RECORD_PROTOCOL, silent), coordinator(network, ONE, record(ONE)):
        await two.provide(COORDINATOR_KEY)
        start_s = trio.current_time()
        assert await find(node, TWO, THREE) == [ONE.peer_id]
        assert trio.current_time() - start_s < ASK_S + 1


async def test_who_asks_and_stays_silent_loses_its_link(autojump_clock: None) -> None:
    network = MemoryNetwork()
    node = network.join(NODE.peer_id)
    async with coordinator(network, ONE, record(ONE)):
        async with node.dial(address_of(ONE.peer_id), RECORD_PROTOCOL) as link:
            with trio.fail_after(20), pytest.raises(Exception, match="closed the link"):
                await link.receive()
        assert await find(node, ONE) == [ONE.peer_id]


async def test_announcing_goes_on_for_ever(autojump_clock: None) -> None:
    network = MemoryNetwork()
    one, node = network.join(ONE.peer_id), network.join(NODE.peer_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announce, one)
        for _ in range(3):
            await trio.sleep(400)
            assert await node.find_providers(COORDINATOR_KEY) == one.addresses
            network.providers.clear()
        nursery.cancel_scope.cancel()


def found(number: int, sequence: int = 1) -> FoundCoordinator:
    identity = Identity(number.to_bytes(32))
    plain = CoordinatorRecord(
        peer_id=identity.peer_id,
        addresses=(),
        target_models=(),
        tokenizer_fingerprints=(),
        draft_models=(),
        load=0.0,
        sequence=sequence,
        expires_at_s=NOW,
    )
    return FoundCoordinator(plain, address_of(identity.peer_id), 0.01)


def test_law7_bounded_memory_of_coordinators(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    known = KnownCoordinators(path)
    for number in range(MAX_KNOWN + 5):
        known.remember([found(number)])
    again = KnownCoordinators(path)
    assert again.addresses == known.addresses
    assert len(again.addresses) == MAX_KNOWN
    assert again.addresses[0] == found(MAX_KNOWN + 4).address
    assert [entry.name for entry in tmp_path.iterdir()] == ["known.json"]


@given(st.binary(max_size=200))
def test_corrupt_file_of_coordinators_is_a_warning_and_an_empty_start(data: bytes) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "known.json"
        path.write_bytes(data)
        assert KnownCoordinators(path).addresses == ()


def test_file_of_coordinators_that_cannot_be_used_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "known.json"
    path.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    assert KnownCoordinators(path).addresses == ()
    assert "larger than" in caplog.text
    blocked = KnownCoordinators(path / "below" / "known.json")
    blocked.remember([found(1)])
    assert "cannot remember" in caplog.text
    assert len(blocked.addresses) == 1
