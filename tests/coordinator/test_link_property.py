"""Leases, matching, node links and engine under whatever nodes, clients and engine may do."""

import logging
from dataclasses import dataclass, field
from functools import partial

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from coordinator.settings import Limits
from tests.support.actors import ClientActor, NodeActor
from tests.support.swarm import ENDLESS, Swarm, SwarmSettings, identity, running_swarm

NUM_NODES = 3
ALLOWED = identity(2).peer_id
SETTINGS = SwarmSettings(allowed=frozenset({ALLOWED}), limits=Limits(max_sessions=4))

numbers = st.integers(0, 3)
nodes = st.integers(0, NUM_NODES - 1)
kinds = ("capacity", "receipts", "resume", "resume", "release", "propose", "propose", "goodbye")
frames = st.lists(st.tuples(st.sampled_from(kinds), numbers), min_size=1, max_size=4)
volunteers = st.sampled_from(["any", "any", "allowed", "none"])
lengths = st.sampled_from([1, 3, 30, 100, 300])
moments = st.sampled_from([0.0, 0.001, 0.0151, 0.2, 1.1])
events = st.one_of(
    st.tuples(st.just("connect"), nodes, numbers),
    st.tuples(st.just("say"), nodes, frames),
    st.tuples(st.just("ask"), volunteers, lengths, moments, st.sampled_from([0.05, 0.5, 60.0])),
    st.tuples(st.just("drop"), nodes),
    st.tuples(st.just("come back"), nodes, frames),
    st.tuples(st.just("come back"), nodes, frames),
    st.tuples(st.just("crash")),
)
BEGINNING = [
    (("connect", 0, 2), 0.0),
    (("connect", 1, 1), 0.0),
    (("ask", "any", 300, 0.0, 60.0), 0.1),
    (("ask", "allowed", 300, 0.0, 60.0), 0.1),
]


@dataclass(eq=False)
class Complaints(logging.Handler):
    """What the guard of the links had to catch: a handler that failed by itself."""

    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage() + str(record.exc_info))


class World:
    def __init__(self, swarm: Swarm, nursery: trio.Nursery) -> None:
        self.swarm, self.nursery = swarm, nursery
        self.nodes = [NodeActor(swarm, number) for number in range(1, NUM_NODES + 1)]
        self.clients: list[ClientActor] = []
        self._sources: dict[int, object] = {}

    async def happen(self, event: tuple) -> None:  # type: ignore[type-arg]
        match event:
            case "connect", number, capacity:
                await self.nursery.start(self.nodes[number].connect, capacity)
            case "say", number, words:
                await self.nodes[number].say(words)
            case "come back", number, words:
                self._drop(number)
                await trio.sleep(0.02)
                await self.nursery.start(self.nodes[number].connect, 1 + len(words))
                await trio.sleep(0.04)
                await self.nodes[number].say([("resume", 0), *words])
            case "ask", who, max_tokens, waits_s, patience_s:
                client = ClientActor(self.swarm, len(self.clients), who)
                self.clients.append(client)
                self.nursery.start_soon(client.run, max_tokens, waits_s, patience_s)
            case "drop", number:
                self._drop(number)
            case ("crash",):
                self.swarm.engine.crash()

    def _drop(self, number: int) -> None:
        peer = self.nodes[number].peer_id
        self.swarm.network.drop_links(peer, self.swarm.identity.peer_id)

    def check(self) -> None:
        leases = self.swarm.coordinator.leases
        for session in self.swarm.coordinator.sessions:
            active = [lease for lease in leases.of_session(session) if lease.node is not None]
            assert len(active) == len({lease.peer_id for lease in active}) <= 2
            assert not active or session.is_live
            for lease in leases.of_session(session):
                assert may_see(session.request.volunteers, lease.peer_id)
            for source in session.nodes_by_source:
                assert self._sources.setdefault(source, session) is session
        for node in leases.nodes:
            known = [lease.session_no for lease in leases.of_node(node)]
            assert len(known) == len(set(known))

    def check_what_was_sent(self) -> None:
        """Law 6 as the nodes saw it: the key of a session is in every Open."""
        allowed = {client.noise_key: client.volunteers for client in self.clients}
        for node in self.nodes:
            for opened in node.opened:
                assert may_see(allowed[opened.noise_key], node.peer_id)


def may_see(volunteers: str, peer_id: str) -> bool:
    return volunteers == "any" or (volunteers == "allowed" and peer_id == ALLOWED)


async def live(script: list[tuple[tuple, float]]) -> None:  # type: ignore[type-arg]
    async with running_swarm(SETTINGS, target=ENDLESS) as swarm:
        async with trio.open_nursery() as nursery:
            world = World(swarm, nursery)
            for event, pause_s in [*BEGINNING, *script]:
                await world.happen(event)
                world.check()
                await trio.sleep(pause_s)
                world.check()
            await swarm.coordinator.drain("the end")
            await trio.sleep(3)
            world.check()
            assert not [node for node in swarm.coordinator.sessions if node.is_live]
            nursery.cancel_scope.cancel()
        world.check_what_was_sent()
        assert swarm.coordinator.intake.num_protocol_errors == 0


@given(script=st.lists(st.tuples(events, moments), max_size=15))
def test_law6_privacy_and_two_drafters_at_most_whatever_happens(
    script: list[tuple[tuple, float]],  # type: ignore[type-arg]
) -> None:
    complaints = Complaints()
    guard = logging.getLogger("specedge_p2p.overlay.guard")
    guard.addHandler(complaints)
    try:
        trio.run(partial(live, script), clock=MockClock(autojump_threshold=0))
    finally:
        guard.removeHandler(complaints)
    assert complaints.texts == []
