import logging

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.names import PeerId
from specedge_p2p.overlay.memory import MAX_QUEUED_FRAMES, MemoryNetwork, MemoryOverlay
from specedge_p2p.overlay.ports import Link, LinkClosed, OverlayError
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import MAX_FRAME_BYTES

PROTOCOL = "/test/1"
A, B, C = PeerId("A"), PeerId("B"), PeerId("C")


def pair(network: MemoryNetwork) -> tuple[MemoryOverlay, MemoryOverlay, str]:
    server = network.join(B)
    return network.join(A), server, server.addresses[0]


async def echo(link: Link) -> None:
    while True:
        await link.send(await link.receive())


async def silent(link: Link) -> None:
    await trio.sleep_forever()


async def test_round_trip_takes_the_latency_of_both_directions(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    network.set_latency(A, B, 0.03)
    network.set_latency(B, A, 0.07)
    async with server.serve(PROTOCOL, echo):
        start_s = trio.current_time()
        async with client.dial(address, PROTOCOL) as link:
            assert trio.current_time() - start_s == pytest.approx(0.1)
            assert link.peer_id == B
            await link.send(b"hi")
            assert await link.receive() == b"hi"
            assert trio.current_time() - start_s == pytest.approx(0.2)


async def test_jitter_never_reorders_and_repeats_with_the_seed(autojump_clock: None) -> None:
    async def arrivals() -> list[float]:
        network = MemoryNetwork(latency_s=0.01, jitter_s=0.1, seed=7)
        client, server, address = pair(network)
        times = []
        async with server.serve(PROTOCOL, echo), client.dial(address, PROTOCOL) as link:
            start_s = trio.current_time()
            for number in range(20):
                await link.send(bytes([number]))
                await trio.sleep(0.01)
            for number in range(20):
                assert await link.receive() == bytes([number])
                times.append(round(trio.current_time() - start_s, 6))
        return times

    assert await arrivals() == await arrivals()


async def test_law7_bounded_queue_makes_the_sender_wait(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    async with server.serve(PROTOCOL, silent), client.dial(address, PROTOCOL) as link:
        for _ in range(MAX_QUEUED_FRAMES):
            await link.send(b"x")
        with trio.move_on_after(100) as scope:
            await link.send(b"x")
        assert scope.cancelled_caught


async def test_cancelled_send_and_receive_lose_and_double_nothing(autojump_clock: None) -> None:
    network = MemoryNetwork(latency_s=1.0)
    client, server, address = pair(network)
    async with server.serve(PROTOCOL, echo), client.dial(address, PROTOCOL) as link:
        for number in range(5):
            await link.send(bytes([number]))
        for number in range(5):
            while True:
                with trio.move_on_after(0.3):
                    assert await link.receive() == bytes([number])
                    break


async def test_back_pressure_ends_when_the_reader_reads(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    async with (
        server.serve(PROTOCOL, echo),
        client.dial(address, PROTOCOL) as link,
        trio.open_nursery() as nursery,
    ):

        async def send_all() -> None:
            for number in range(1000):
                await link.send(number.to_bytes(2))

        nursery.start_soon(send_all)
        for number in range(1000):
            assert await link.receive() == number.to_bytes(2)


@pytest.mark.parametrize("failure", ["cut", "kill", "drop_links", "partition"])
async def test_lost_connection_wakes_whoever_waits(autojump_clock: None, failure: str) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    async with server.serve(PROTOCOL, silent), client.dial(address, PROTOCOL) as link:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(LinkClosed):
                    await link.receive()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            match failure:
                case "cut":
                    network.cut(A, B)
                case "kill":
                    network.kill(B)
                case "partition":
                    network.partition([A])
                case _:
                    network.drop_links(A, B)
        with pytest.raises(LinkClosed):
            await link.send(b"x")
        if failure == "drop_links":
            async with client.dial(address, PROTOCOL):
                return
        with pytest.raises(OverlayError, match="cannot be reached"):
            async with client.dial(address, PROTOCOL):
                pass
        network.heal_all()
        if failure != "kill":
            async with client.dial(address, PROTOCOL):
                pass


async def test_killed_peer_may_come_back_under_its_name(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, _, address = pair(network)
    with pytest.raises(OverlayError, match="joined already"):
        network.join(B)
    network.kill(B)
    reborn = network.join(B)
    async with reborn.serve(PROTOCOL, echo), client.dial(address, PROTOCOL) as link:
        await link.send(b"x")
        assert await link.receive() == b"x"
    network.kill(A)
    async with reborn.serve(PROTOCOL, echo):
        with pytest.raises(OverlayError):
            async with client.dial(address, PROTOCOL):
                pass


async def test_stalled_direction_tells_nobody_until_it_resumes(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    async with server.serve(PROTOCOL, echo), client.dial(address, PROTOCOL) as link:
        network.stall(B, A)
        await link.send(b"x")
        with trio.move_on_after(1000) as scope:
            await link.receive()
        assert scope.cancelled_caught
        network.resume(B, A)
        assert await link.receive() == b"x"


async def test_close_flushes_and_is_idempotent(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    got: list[bytes] = []
    done = trio.Event()

    async def collect(link: Link) -> None:
        try:
            while True:
                got.append(await link.receive())
        finally:
            done.set()

    async with server.serve(PROTOCOL, collect):
        async with client.dial(address, PROTOCOL) as link:
            for number in range(10):
                await link.send(bytes([number]))
            await link.aclose()
            await link.aclose()
            with pytest.raises(LinkClosed):
                await link.send(b"x")
            with pytest.raises(LinkClosed):
                await link.receive()
        await done.wait()
    assert got == [bytes([number]) for number in range(10)]


async def test_sender_learns_of_the_close_even_while_it_waits(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)

    async def close_later(link: Link) -> None:
        await trio.sleep(5)

    start_s = trio.current_time()
    async with server.serve(PROTOCOL, close_later), client.dial(address, PROTOCOL) as link:
        for _ in range(MAX_QUEUED_FRAMES):
            await link.send(b"x")
        with pytest.raises(LinkClosed):
            await link.send(b"x")
        assert 5 <= trio.current_time() - start_s < 10


@pytest.mark.parametrize("error", [RuntimeError("boom"), ProtocolError("bad", "boom")])
async def test_law4_handler_that_fails_costs_its_own_link_only(
    autojump_clock: None, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)

    async def fail_on_x(link: Link) -> None:
        while (frame := await link.receive()) != b"x":
            await link.send(frame)
        async with trio.open_nursery():
            raise error

    async with (
        server.serve(PROTOCOL, fail_on_x),
        client.dial(address, PROTOCOL) as good,
        client.dial(address, PROTOCOL) as bad,
    ):
        with caplog.at_level(logging.WARNING):
            await bad.send(b"x")
            with pytest.raises(LinkClosed):
                await bad.receive()
        assert "boom" in caplog.text
        await good.send(b"still here")
        assert await good.receive() == b"still here"


async def test_dial_says_what_is_wrong(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    async with server.serve(PROTOCOL, echo):
        for wrong, protocol, reason in (
            ("/memory", PROTOCOL, "names no peer"),
            (address, "/other", "does not speak"),
            (client.addresses[0], PROTOCOL, "itself"),
        ):
            with pytest.raises(OverlayError, match=reason):
                async with client.dial(wrong, protocol):
                    pass
        with pytest.raises(OverlayError, match="served already"):
            async with server.serve(PROTOCOL, echo):
                pass


async def test_law7_bounded_frames(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    async with server.serve(PROTOCOL, echo), client.dial(address, PROTOCOL) as link:
        await link.send(bytes(MAX_FRAME_BYTES))
        assert len(await link.receive()) == MAX_FRAME_BYTES
        with pytest.raises(OverlayError, match="at most"):
            await link.send(bytes(MAX_FRAME_BYTES + 1))


async def test_end_of_serving_ends_its_links(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    async with server.serve(PROTOCOL, echo):
        pass
    with pytest.raises(OverlayError):
        async with client.dial(address, PROTOCOL):
            pass
    with trio.fail_after(10):
        async with server.serve(PROTOCOL, silent):
            dialled = client.dial(address, PROTOCOL)
            link = await dialled.__aenter__()
        with pytest.raises(LinkClosed):
            await link.receive()
        await dialled.__aexit__(None, None, None)


async def test_provider_records_are_found_by_others(autojump_clock: None) -> None:
    network = MemoryNetwork()
    client, server, address = pair(network)
    assert await client.find_providers("k") == ()
    await server.provide("k")
    await server.provide("k")
    assert await client.find_providers("k") == (address,)
    assert await server.find_providers("k") == ()
    network.kill(B)
    assert await client.find_providers("k") == (address,)  # as stale as a real one


@given(st.lists(st.binary(max_size=20), max_size=30), st.integers(0, 2**16))
def test_every_frame_arrives_once_in_order(frames: list[bytes], seed: int) -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=0.1, jitter_s=1.0, seed=seed)
        client, server, address = pair(network)
        async with server.serve(PROTOCOL, echo), client.dial(address, PROTOCOL) as link:
            for frame in frames:
                await link.send(frame)
            assert [await link.receive() for _ in frames] == frames

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
