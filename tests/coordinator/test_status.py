"""What people are shown of the live network."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from coordinator.scheduler.benefit import MIN_SESSIONS
from coordinator.settings import Limits
from specedge_p2p.views import BenefitView, GuessesView
from specedge_p2p.wire.messages import Capacity, Release
from tests.support.links import changed, proposal
from tests.support.scripted_node import HELLO, scripted_node, settled
from tests.support.swarm import ENDLESS, SwarmSettings, identity, running_swarm


async def test_an_idle_network(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm:
        await trio.sleep(3)
        network = swarm.coordinator.status.network()
        assert network.peer_id == swarm.identity.peer_id
        assert network.target_model == "toy-target"
        assert network.engine_is_ready
        assert (network.nodes, network.sessions) == ((), ())
        assert network.uptime_s >= 3
        assert network.acceptance_length is None


async def test_a_node_at_work(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm, scripted_node(swarm) as node:
        await node.greet(changed(HELLO, max_sessions=3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(swarm.generate, "a long story", max_tokens=500))
            opened = await node.hear_session()
            await node.hear_tokens(opened.num_tokens + 3)
            committed = node.machine.committed(opened.session_no)
            await node.say(proposal([4, 5, 6], [0, 0, 1], base_position=committed))
            await settled(swarm)
            network = swarm.coordinator.status.network()
            (shown,) = network.nodes
            assert shown.peer_id == identity(1).peer_id
            assert (shown.draft_model, shown.num_sessions, shown.max_sessions) == (
                "toy-draft",
                1,
                3,
            )
            assert shown.num_drafted == 3
            assert shown.round_trip_s is not None
            assert shown.level_time_s == HELLO.level_time_s
            (session,) = network.sessions
            assert session.nodes == (shown.peer_id,)
            assert session.num_tokens == network.num_tokens > 3
            assert session.num_rounds == session.num_tokens - 1
            await node.say(Release(opened.session_no), Capacity(3, 0.25))
            await settled(swarm)
            network = swarm.coordinator.status.network()
            assert network.sessions[0].nodes == ()
            assert network.nodes[0].num_sessions == 0
            assert network.nodes[0].level_time_s == 0.25  # as it was measured last
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_measured", [True, False])
async def test_what_volunteers_bring_is_not_known_at_first(
    autojump_clock: MockClock, is_measured: bool
) -> None:
    limits = Limits(holdout_rate=0.0075 if is_measured else 0.0, has_ngram=False)
    async with running_swarm(SwarmSettings(limits=limits)) as swarm:
        network = swarm.coordinator.status.network()
        assert network.benefit == BenefitView(is_measured=is_measured, num_needed=MIN_SESSIONS)
        assert network.guesses == GuessesView()
        assert network.engine.ngram == ()  # no guesses, no rates
        assert network.engine.levels_per_step is None


async def test_an_engine_that_crashed(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        swarm.engine.crash()
        await trio.sleep(0.1)
        assert not swarm.coordinator.status.network().engine_is_ready
        await trio.sleep(1)
        network = swarm.coordinator.status.network()
        assert network.engine_is_ready
        assert network.num_engine_restarts == 1
