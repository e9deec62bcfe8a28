"""A link made worse on purpose, in virtual time."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from statistics import mean

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.slow_link import LinkConditions, Transit, life_s, slowed
from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay.memory import MemoryNetwork
from specedge_p2p.overlay.ports import Link, LinkClosed

HERE, THERE = (Identity.generate().peer_id for _ in range(2))


async def echo(link: Link) -> None:
    while True:
        await link.send(await link.receive())


@asynccontextmanager
async def echoing(conditions: LinkConditions, latency_s: float = 0.01) -> AsyncIterator[Link]:
    network = MemoryNetwork(latency_s=latency_s)
    one, other = network.join(HERE), network.join(THERE)
    async with (
        other.serve("/echo", echo),
        one.dial(other.addresses[0], "/echo") as raw,
        slowed(raw, conditions) as link,
    ):
        yield link


async def test_a_delayed_link_adds_half_each_way(autojump_clock: object) -> None:
    async with echoing(LinkConditions(round_trip_s=0.2)) as link:
        started = trio.current_time()
        for i in range(5):
            await link.send(bytes([i]))
        assert [await link.receive() for _ in range(5)] == [bytes([i]) for i in range(5)]
        assert trio.current_time() - started == pytest.approx(0.22)
        assert link.peer_id == THERE


async def test_without_conditions_the_link_is_the_link(autojump_clock: object) -> None:
    async with echoing(LinkConditions()) as link:
        assert not hasattr(link, "drop")
        await link.send(b"x")
        assert await link.receive() == b"x"


async def test_jitter_and_loss_keep_the_order(autojump_clock: object) -> None:
    conditions = LinkConditions(round_trip_s=0.1, jitter_s=0.1, loss=0.2, seed="7")
    frames = [bytes([i]) for i in range(100)]
    async with echoing(conditions) as link, trio.open_nursery() as nursery:

        async def send() -> None:
            for frame in frames:
                await link.send(frame)
                await trio.sleep(0.01)

        nursery.start_soon(send)
        assert [await link.receive() for _ in frames] == frames


@given(
    st.builds(
        LinkConditions,
        st.floats(0.0, 2.0),
        st.floats(0.0, 2.0),
        st.floats(0.0, 0.5),
        st.just(0.0),
        st.text(max_size=4),
    ),
    st.lists(st.floats(0.0, 0.1), max_size=50),
)
def test_frames_arrive_in_order_and_never_too_early(
    conditions: LinkConditions, gaps: list[float]
) -> None:
    transit, again = Transit(conditions, "in"), Transit(conditions, "in")
    now_s, last_s = 0.0, -math.inf
    for gap_s in gaps:
        now_s += gap_s
        due_s = transit.due_s(now_s)
        assert due_s >= max(last_s, now_s + conditions.round_trip_s / 2)
        assert due_s == again.due_s(now_s)  # repeatable
        last_s = due_s


def delays(conditions: LinkConditions, num: int = 20_000) -> list[float]:
    """Of frames so far apart that none waits for another."""
    transit = Transit(conditions, "out")
    return [transit.due_s(1000.0 * i) - 1000.0 * i for i in range(num)]


def test_jitter_has_the_mean_it_says_half_each_way() -> None:
    assert mean(delays(LinkConditions(0.1, 0.04))) == pytest.approx(0.05 + 0.02, rel=0.05)


def test_a_lost_frame_comes_a_round_trip_and_a_fifth_later() -> None:
    got = [round(delay / 0.1, 6) for delay in delays(LinkConditions(0.1, loss=0.1))]
    assert got.count(0.5) / len(got) == pytest.approx(0.9, rel=0.02)
    assert got.count(1.7) / len(got) == pytest.approx(0.09, rel=0.1)
    assert got.count(2.9) / len(got) == pytest.approx(0.009, rel=0.4)


def test_directions_and_seeds_differ() -> None:
    conditions = [LinkConditions(0.1, 0.1, seed=seed) for seed in "ab"]
    first = {Transit(c, way).due_s(0.0) for c in conditions for way in ("in", "out")}
    assert len(first) == 4


async def test_churn_drops_the_link_both_ways(autojump_clock: object) -> None:
    conditions = LinkConditions(round_trip_s=0.1, churn_s=5.0, seed="3")
    async with echoing(conditions) as link:
        started = trio.current_time()
        with pytest.raises(LinkClosed, match="on purpose"):
            await link.receive()
        assert trio.current_time() - started == pytest.approx(life_s(conditions))
        with pytest.raises(LinkClosed):
            await link.send(b"x")
        with pytest.raises(LinkClosed):
            await link.receive()
        with trio.fail_after(0.5):
            await link.aclose()


async def test_a_drop_interrupts_a_sender_that_waits_for_room(autojump_clock: object) -> None:
    conditions = LinkConditions(round_trip_s=100.0, churn_s=5.0)
    async with echoing(conditions) as link:

        async def send_on() -> None:
            while True:
                await link.send(b"x")

        with pytest.raises(LinkClosed):
            await send_on()
        assert 2.5 <= trio.current_time() < 10


async def test_the_other_end_sees_the_drop(autojump_clock: object) -> None:
    network = MemoryNetwork(latency_s=0.01)
    one, other = network.join(HERE), network.join(THERE)
    ended = trio.Event()

    async def wait_for_the_end(link: Link) -> None:
        with pytest.raises(LinkClosed):
            await link.receive()
        ended.set()

    async with other.serve("/echo", wait_for_the_end):
        with trio.fail_after(10):
            async with (
                one.dial(other.addresses[0], "/echo") as raw,
                slowed(raw, LinkConditions(churn_s=5.0)) as link,
            ):
                with pytest.raises(LinkClosed):
                    await link.receive()
            await ended.wait()


def test_lives_vary_around_their_mean() -> None:
    lives = [life_s(LinkConditions(churn_s=10.0, seed=str(n))) for n in range(2000)]
    assert mean(lives) == pytest.approx(10, rel=0.05)
    assert 5 <= min(lives) < max(lives) <= 15
    assert all(a != b for a, b in pairwise(lives))
    assert life_s(LinkConditions()) == math.inf
