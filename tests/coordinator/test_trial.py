"""Sessions that are served without volunteers, to measure what volunteers bring."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from coordinator.leases import Leases
from coordinator.sessions import Sessions
from coordinator.settings import Limits
from coordinator.trial import Trial
from specedge_p2p.lm.toy import ToyModel
from specedge_p2p.names import PeerId
from tests.support.links import changed
from tests.support.node_links import open_link
from tests.support.sessions import make_session
from tests.support.swarm import ENDLESS, Swarm, SwarmSettings, running_swarm

ALLOWED = PeerId("b")


class World:
    """Leases and a trial that holds out whatever it may, the first session excepted."""

    def __init__(self, rate: float = 1.0) -> None:
        self.sessions = Sessions(8)
        self.leases = Leases(self.sessions, frozenset({ALLOWED}), lambda: 100.0, 60.0)
        self.trial = Trial(self.leases, frozenset({ALLOWED}), rate, lambda: 0.0)

    async def join(self, name: str, max_sessions: int = 1, model: bytes = bytes(16)) -> None:
        node, _ = await open_link(max_sessions, name)
        node.hello = changed(node.hello, model_fingerprint=model)
        self.leases.join(node)


async def test_only_where_a_node_has_room_somebody_could_be_missed() -> None:
    world = World()
    assert world.trial.arm("any") is None
    await world.join("a")
    assert world.trial.arm("none") is None
    assert world.trial.arm("allowed") is None
    assert world.trial.arm("any") == "drafted"
    assert world.trial.arm("any") == "holdout"
    world.sessions.add(make_session())
    world.leases.rematch()
    assert world.trial.arm("any") is None  # its one place is taken
    await world.join(ALLOWED)
    assert world.trial.arm("allowed") == "holdout"


async def test_the_place_of_a_second_node_is_room_for_the_next_session() -> None:
    """Or nobody would take part where all places are taken by second opinions."""
    world = World()
    await world.join("a")
    await world.join(ALLOWED, model=b"another")
    world.sessions.add(make_session())
    world.leases.rematch()
    assert world.trial.arm("any") == "drafted"
    roles = [lease.role for node in world.leases.nodes for lease in world.leases.of_node(node)]
    assert sorted(roles) == ["active", "standby"]
    assert world.trial.arm("any") == "holdout"


async def test_the_trial_can_be_switched_off() -> None:
    world = World(rate=0.0)
    await world.join("a")
    assert [world.trial.arm("any") for _ in range(300)] == [None] * 300


def swarm_settings(rate: float) -> SwarmSettings:
    return SwarmSettings(limits=Limits(holdout_rate=rate))


def draft() -> ToyModel:
    return ToyModel(replace(ENDLESS, perturbation=0.3), name="toy-draft")


async def test_law1_output_and_law6_a_holdout_is_answered_alike_and_shown_to_no_node(
    autojump_clock: MockClock,
) -> None:
    async with running_swarm(swarm_settings(1.0), [draft()], ENDLESS) as swarm:
        before = await swarm.generate("a long story", max_tokens=60)
        num_seen = swarm.coordinator.leases.nodes[0].num_drafted
        held_out = await swarm.generate("a long story", max_tokens=60)
        assert before.stats is not None
        assert held_out.stats is not None
        assert before.stats.num_accepted_by_node
        assert not held_out.stats.num_accepted_by_node
        assert held_out.token_ids == before.token_ids
        assert (held_out.text, held_out.reason) == (before.text, before.reason)
        assert swarm.coordinator.leases.nodes[0].num_drafted == num_seen > 0
        assert swarm.coordinator.load.num_holdouts == 1


async def test_who_wants_no_volunteers_is_not_counted_as_held_out(
    autojump_clock: MockClock,
) -> None:
    async with running_swarm(swarm_settings(1.0), [draft()], ENDLESS) as swarm:
        for _ in range(3):
            await swarm.generate("private", max_tokens=5, volunteers="none")
        assert swarm.coordinator.load.num_holdouts == 0


async def ask_many(swarm: Swarm, client: int, num: int) -> None:
    for i in range(num):
        await swarm.generate(f"story {client} {i}", max_tokens=45, seed=i)


async def test_what_volunteers_bring_is_measured(autojump_clock: MockClock) -> None:
    async with running_swarm(swarm_settings(0.5), [draft()], ENDLESS) as swarm:
        async with trio.open_nursery() as nursery:
            for client in range(3):
                nursery.start_soon(ask_many, swarm, client, 20)
        load = swarm.coordinator.load
        got = load.benefit.estimate()
        assert got.num_drafted + got.num_holdouts == 60
        assert got.num_holdouts == load.num_holdouts >= 24
        assert got.low is not None
        assert got.low > 1.1  # a good draft model
        assert not load.benefit._live


async def test_volunteers_that_know_nothing_bring_nothing(autojump_clock: MockClock) -> None:
    useless = ToyModel(replace(ENDLESS, perturbation=50.0), name="toy-draft")
    async with running_swarm(swarm_settings(0.5), [useless], ENDLESS) as swarm:
        async with trio.open_nursery() as nursery:
            for client in range(3):
                nursery.start_soon(ask_many, swarm, client, 17)
        got = swarm.coordinator.load.benefit.estimate()
        assert got.ratio == pytest.approx(1.0, abs=0.01)
