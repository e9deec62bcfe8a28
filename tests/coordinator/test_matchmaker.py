"""How often sessions and nodes are matched, whatever nodes say and whoever finds no place."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from coordinator import leases, matchmaker
from coordinator.gateway.ports import Volunteers
from coordinator.matchmaker import POOL_SIZE, REVIEW_S, Matchmaker
from coordinator.node_link import NUM_ROUND_TRIPS, NodeLink
from coordinator.scheduler.matching import Matching, match
from coordinator.scheduler.needs import SessionNeed
from coordinator.scheduler.places import NodeOffer
from coordinator.sessions import Session
from specedge_p2p.wire.messages import Capacity, Hello, Release
from tests.support.lease_world import World, propose
from tests.support.links import changed
from tests.support.scripted_node import HELLO, scripted_node, settled
from tests.support.swarm import ENDLESS, Swarm, running_swarm

NUM_NODES = 300
FULL = changed(HELLO, max_sessions=0)


@pytest.fixture
def num_looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every matching, how many nodes it looked at."""
    counted: list[int] = []

    def counting(
        sessions: Sequence[SessionNeed],
        nodes: Sequence[NodeOffer],
        step_time_s: float,
        num_with_room: int = 0,
    ) -> Matching:
        counted.append(len(nodes))
        return match(sessions, nodes, step_time_s, num_with_room)

    monkeypatch.setattr(matchmaker, "match", counting)
    return counted


@asynccontextmanager
async def crowd(volunteers: Volunteers, hello: Hello, num_nodes: int) -> AsyncIterator[Swarm]:
    """A session that does not end, and nodes that answer their pings."""
    async with running_swarm(target=ENDLESS) as swarm, trio.open_nursery() as nursery:
        run = partial(swarm.generate, "a story", max_tokens=3000, volunteers=volunteers)
        nursery.start_soon(run)
        async with AsyncExitStack() as stack:
            for number in range(1, num_nodes + 1):
                node = await stack.enter_async_context(scripted_node(swarm, number))
                await node.greet(hello)
                nursery.start_soon(node.read_for_ever)
            yield swarm
            nursery.cancel_scope.cancel()


async def test_law7_bounded_a_session_that_nobody_may_draft_for_costs_no_matching(
    autojump_clock: MockClock, num_looked_at: list[int]
) -> None:
    async with crowd("none", HELLO, NUM_NODES) as swarm:
        await trio.sleep(4)  # two pings of each node
        assert len(swarm.coordinator.leases.nodes) == NUM_NODES
    assert num_looked_at == []


@pytest.mark.parametrize("volunteers", ["any", "allowed"])
async def test_law7_bounded_a_session_without_a_place_is_matched_in_reviews_only(
    autojump_clock: MockClock, num_looked_at: list[int], volunteers: Volunteers
) -> None:
    """Whether all nodes are full or none of them is on the host's list."""
    async with crowd(volunteers, FULL if volunteers == "any" else HELLO, NUM_NODES):
        num_looked_at.clear()
        await trio.sleep(4)
        assert 0 < len(num_looked_at) <= 4 / REVIEW_S + 1


@pytest.mark.parametrize("word", [Capacity(0), Capacity(8), Capacity(3, 0.02, 0.001)])
async def test_law4_bytes_of_a_node_that_keeps_changing_its_mind_cost_no_more_than_reviews(
    autojump_clock: MockClock, num_looked_at: list[int], word: Capacity
) -> None:
    async with crowd("allowed", HELLO, 1) as swarm, scripted_node(swarm, 2) as node:
        await node.greet()
        await settled(swarm)
        num_looked_at.clear()
        for i in range(500):
            await node.say(Capacity(i % 3), word)
            await trio.sleep(0.002)
        assert trio.current_time() > 1
        assert len(num_looked_at) <= 1 / REVIEW_S + 1
        await settled(swarm)
        link = swarm.coordinator.leases.nodes[-1]
        assert link.max_sessions == word.max_sessions


async def test_what_a_node_gives_back_is_given_away_in_the_next_review(
    autojump_clock: MockClock, num_looked_at: list[int]
) -> None:
    async with crowd("any", HELLO, 0) as swarm, scripted_node(swarm, 1) as node:
        await node.greet()
        head = await node.hear_session()
        async with scripted_node(swarm, 2) as other:
            await other.greet()
            await settled(swarm)
            num_looked_at.clear()
            await node.say(Release(head.session_no))
            started_s = trio.current_time()
            await other.hear_session()
            assert trio.current_time() - started_s < 2 * REVIEW_S
            assert len(num_looked_at) <= 2


async def test_law7_bounded_requests_that_find_no_place_cost_one_review_more_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of all sessions and nodes, however many come and go in between."""
    reviews: list[int] = []

    class Counting(Matchmaker):
        def match_all(self, sessions: Sequence[Session]) -> Matching:
            reviews.append(len(sessions))
            return super().match_all(sessions)

    monkeypatch.setattr(leases, "Matchmaker", Counting)
    world = World()
    for i in range(20):
        await world.node(f"node-{i}")
    world.session(1, volunteers="allowed")
    world.later(REVIEW_S)
    reviews.clear()
    for number in range(2, 52):
        session = world.session(number, volunteers="allowed")
        world.leases.close(session, "left")
        world.sessions.remove(session)
    assert len(reviews) == 1
    world.later(REVIEW_S)
    assert len(reviews) == 2


async def test_law7_bounded_a_review_of_nobody_is_not_due_again_at_once() -> None:
    world = World()
    world.session(1, volunteers="none")
    world.later(REVIEW_S)
    assert not world.leases._matchmaker.is_review_due


async def test_between_two_reviews_nobody_is_looked_at_in_vain(num_looked_at: list[int]) -> None:
    """More nodes have room than are kept between reviews, and none of them may be shown it."""
    world = World()
    for i in range(POOL_SIZE + 44):
        await world.node(f"node-{i}")
    world.session(1, volunteers="allowed")
    num_looked_at.clear()
    for number in range(2, 8):
        world.session(number)
    assert num_looked_at == [POOL_SIZE] * 6


async def test_a_node_that_takes_more_is_asked_before_the_next_review() -> None:
    world = World()
    node, _ = await world.node("a", max_sessions=0)
    first = world.session(1)
    assert world.leases.drafting_peers(first) == ()
    world.leases.hear_capacity(node, Capacity(2))
    second = world.session(2)
    assert world.leases.drafting_peers(first) == world.leases.drafting_peers(second) == ("a",)


async def test_a_word_of_a_node_that_has_left_counts_for_nothing() -> None:
    world = World()
    gone, _ = await world.node("a", max_sessions=0)
    world.leases.rematch()
    world.leases.leave(gone)
    world.leases.hear_capacity(gone, Capacity(9))  # its frame was under way
    assert world.leases.drafting_peers(world.session(1)) == ()


async def test_one_slow_pong_moves_nobody() -> None:
    """A session that moves costs a prompt, and a pong that was held up says nothing of a link."""
    world = World()
    near, wire = await world.node("near")
    for _ in range(3):
        answer_ping(near, 0.015)
    session = world.session(1)
    await propose(world, near, wire)
    await world.node("other")
    world.later(10)
    answer_ping(near, 1.5)
    for _ in range(8):
        world.later(2 * REVIEW_S)
        assert world.leases.drafting_peers(session) == ("near",)
    for _ in range(NUM_ROUND_TRIPS):  # a link that has become slow is another matter
        answer_ping(near, 1.5)
    world.later(2 * REVIEW_S)
    assert world.leases.drafting_peers(session) == ("near", "other")


def answer_ping(node: NodeLink, round_trip_s: float) -> None:
    node.pinged(1, 10.0)
    node.ponged(1, 10.0 + round_trip_s)
