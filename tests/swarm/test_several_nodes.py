"""Several nodes on one session, in virtual time: other models, standbys, moves without a gap."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
from trio.testing import MockClock

from coordinator.sessions import Session
from specedge_p2p.lm.toy import ToyModel
from specedge_p2p.names import PeerId
from tests.support.swarm import ENDLESS, Swarm, SwarmSettings, identity, running_swarm
from tests.swarm.test_swarm import endless

FIRST, SECOND = identity(1).peer_id, identity(2).peer_id
NUM_TOKENS = 4000
PROMPT = "a long story"


@asynccontextmanager
async def told(
    swarm: Swarm, volunteers: str = "any"
) -> AsyncIterator[tuple[Session, trio.Nursery]]:
    """A generation that does not end; what is committed of it is what the target alone says."""
    async with trio.open_nursery() as nodes:
        generate = partial(swarm.generate, PROMPT, max_tokens=NUM_TOKENS)
        nodes.start_soon(partial(generate, volunteers=volunteers))
        await trio.sleep(0.2)
        (session,) = swarm.coordinator.sessions
        yield session, nodes
        nodes.cancel_scope.cancel()
    tokens = session.token_ids[session.prompt_length :]
    assert tokens == swarm.expected(PROMPT, max_tokens=len(tokens))


def drafting(swarm: Swarm, session: Session) -> tuple[PeerId, ...]:
    return swarm.coordinator.leases.drafting_peers(session)


async def until_drafting(swarm: Swarm, session: Session, *peers: PeerId) -> None:
    """Wait for these nodes; somebody drafts all the while."""
    with trio.fail_after(15):
        while drafting(swarm, session) != peers:
            assert session.is_live
            assert drafting(swarm, session)
            await trio.sleep(0.01)


async def join(swarm: Swarm, nodes: trio.Nursery, number: int, fingerprint: bytes) -> None:
    model: ToyModel = endless(0.5)
    nodes.start_soon(partial(swarm.run_node, number, model, fingerprint=fingerprint))
    while number not in swarm.workers:  # noqa: ASYNC110 - virtual time
        await trio.sleep(0.01)


async def test_a_second_node_with_another_model_helps_and_is_credited(
    autojump_clock: MockClock,
) -> None:
    async with running_swarm(drafts=[endless(0.5)], target=ENDLESS) as swarm:
        async with told(swarm) as (session, nodes):
            assert drafting(swarm, session) == (FIRST,)
            other = ToyModel(ENDLESS, name="the target itself")
            nodes.start_soon(partial(swarm.run_node, 2, other, fingerprint=b"another model"))
            await until_drafting(swarm, session, FIRST, SECOND)
            roles = [lease.role for lease in swarm.coordinator.leases.of_session(session)]
            assert roles == ["active", "standby"]
            await trio.sleep(1)
        assert session.accepted_by_node[FIRST] > 0
        assert session.accepted_by_node[SECOND] > 0
        await trio.sleep(2)
        assert (await swarm.ledger.summary()).accepted_by_node == session.accepted_by_node


async def test_a_second_node_with_the_same_model_is_kept_for_others(
    autojump_clock: MockClock,
) -> None:
    async with (
        running_swarm(drafts=[endless(0.5)], target=ENDLESS) as swarm,
        told(swarm) as (session, nodes),
    ):
        await join(swarm, nodes, 2, bytes(16))
        for _ in range(400):
            await trio.sleep(0.01)
            assert drafting(swarm, session) == (FIRST,)


async def test_a_node_that_slows_down_is_replaced_without_a_gap(
    autojump_clock: MockClock,
) -> None:
    async with (
        running_swarm(drafts=[endless(0.5)], target=ENDLESS) as swarm,
        told(swarm) as (session, nodes),
    ):
        await join(swarm, nodes, 2, bytes(16))
        await trio.sleep(4)
        assert drafting(swarm, session) == (FIRST,)
        swarm.level_times_s[1] = 2.0
        await until_drafting(swarm, session, FIRST, SECOND)
        await until_drafting(swarm, session, SECOND)
        before = session.accepted_by_node[SECOND]
        await trio.sleep(0.5)
        assert session.accepted_by_node[SECOND] > before


async def test_law3_critical_path_a_dead_nodes_standby_goes_on_at_once(
    autojump_clock: MockClock,
) -> None:
    async with (
        running_swarm(drafts=[endless(0.5)], target=ENDLESS) as swarm,
        told(swarm) as (session, nodes),
    ):
        await join(swarm, nodes, 2, b"another model")
        await until_drafting(swarm, session, FIRST, SECOND)
        await trio.sleep(0.5)
        swarm.network.stall(FIRST, swarm.identity.peer_id)
        await trio.sleep(0.1)  # what was on its way has arrived
        before = dict(session.accepted_by_node), session.num_rounds
        await trio.sleep(1)
        assert session.accepted_by_node[FIRST] == before[0][FIRST]
        num_rounds = session.num_rounds - before[1]
        assert session.accepted_by_node[SECOND] - before[0][SECOND] > num_rounds / 2


async def test_law6_privacy_no_stranger_stands_by(autojump_clock: MockClock) -> None:
    settings = SwarmSettings(allowed=frozenset({FIRST}))
    async with running_swarm(settings, [endless(0.5)], ENDLESS) as swarm:
        async with told(swarm, "allowed") as (session, nodes):
            await join(swarm, nodes, 2, b"another model")
            await trio.sleep(2)
            swarm.level_times_s[1] = 2.0
            await trio.sleep(2)
            assert drafting(swarm, session) == (FIRST,)
        assert swarm.workers[2].stats.num_committed == 0
