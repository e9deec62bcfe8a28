"""The coordinator's end of a link: who is let in, and what a bad or silent node costs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from coordinator.leases import Leases
from coordinator.settings import Limits
from specedge_p2p.lm.toy_text import ToyText
from specedge_p2p.overlay.memory import address_of
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL, Link, LinkClosed
from specedge_p2p.wire import messages as m
from specedge_p2p.wire.codec import AnyMessage, encode_frame
from specedge_p2p.wire.link_machine import LinkMachine
from tests.support.links import HELLO, changed, proposal
from tests.support.swarm import VOCAB, Swarm, SwarmSettings, identity, running_swarm

GREETING = changed(HELLO, tokenizer_fingerprint=ToyText(VOCAB).fingerprint())


@asynccontextmanager
async def dialled(swarm: Swarm, number: int = 77) -> AsyncIterator[Link]:
    overlay = swarm.network.join(identity(number).peer_id)
    address = address_of(swarm.identity.peer_id)
    async with overlay.dial(address, DRAFT_PROTOCOL) as link:
        yield link


async def greet(link: Link, hello: m.Hello = GREETING) -> tuple[LinkMachine, AnyMessage]:
    machine = LinkMachine("node")
    await link.send(machine.send(hello))
    (answer,) = machine.receive(await link.receive())
    return machine, answer


async def until_closed(link: Link) -> None:
    with trio.fail_after(60):
        try:
            while True:
                await link.receive()
        except LinkClosed:
            return


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"tokenizer_fingerprint": b"foreign"}, "tokenizer"),
        ({"min_version": 2, "max_version": 3}, "version"),
        ({"min_version": 0, "max_version": 0}, "version"),
    ],
)
async def test_a_node_that_does_not_fit_is_told_why(
    autojump_clock: trio.testing.MockClock, change: dict[str, object], code: str
) -> None:
    async with running_swarm() as swarm, dialled(swarm) as link:
        _, answer = await greet(link, changed(GREETING, **change))
        assert isinstance(answer, m.Refuse)
        assert answer.code == code
        await until_closed(link)
        assert swarm.coordinator.leases.nodes == ()


async def test_law7_bounded_nodes_are_refused_beyond_the_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    settings = SwarmSettings(limits=Limits(max_nodes=1))
    async with running_swarm(settings) as swarm, dialled(swarm, 1) as one, dialled(swarm, 2) as two:
        _, welcome = await greet(one)
        assert isinstance(welcome, m.Welcome)
        await trio.sleep(0.1)
        _, refuse = await greet(two)
        assert isinstance(refuse, m.Refuse)
        assert refuse.code == "full"


@pytest.mark.parametrize("says_hello", [False, True])
async def test_a_silent_peer_loses_its_link(
    autojump_clock: trio.testing.MockClock, says_hello: bool
) -> None:
    async with running_swarm() as swarm, dialled(swarm) as link:
        if says_hello:
            await greet(link)
        began_s = trio.current_time()
        await until_closed(link)
        assert 5 <= trio.current_time() - began_s <= 11
        await trio.sleep(0.1)
        assert swarm.coordinator.leases.nodes == ()


HOSTILE = [
    b"\xc1",
    encode_frame([m.Goodbye(), m.Pong(1)]),
    encode_frame([GREETING]),
    encode_frame([proposal([1], [0])]),
    encode_frame([m.Release(9)]),
    encode_frame([m.Ping(1)]),
]


@pytest.mark.parametrize("says_hello", [False, True])
@pytest.mark.parametrize("frame", HOSTILE)
async def test_law4_bytes_of_a_bad_peer_cost_its_own_link(
    autojump_clock: trio.testing.MockClock, frame: bytes, says_hello: bool
) -> None:
    if frame == encode_frame([GREETING]) and not says_hello:
        frame = encode_frame([GREETING, GREETING])
    async with running_swarm() as swarm, dialled(swarm, 1) as good, dialled(swarm, 2) as bad:
        good_machine, _ = await greet(good)
        if says_hello:
            await greet(bad)
        await bad.send(frame)
        await until_closed(bad)
        assert swarm.coordinator.intake.num_protocol_errors == 1
        (ping,) = good_machine.receive(await good.receive())
        assert isinstance(ping, m.Ping)
        assert [node.peer_id for node in swarm.coordinator.leases.nodes] == [good_peer()]


def good_peer() -> str:
    return identity(1).peer_id


async def test_a_peer_that_connects_anew_replaces_its_older_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        overlay = swarm.network.join(identity(77).peer_id)
        address = address_of(swarm.identity.peer_id)
        async with overlay.dial(address, DRAFT_PROTOCOL) as older:
            await greet(older)
            await trio.sleep(0.1)
            async with overlay.dial(address, DRAFT_PROTOCOL) as newer:
                machine, _ = await greet(newer)
                await until_closed(older)
                assert len(swarm.coordinator.leases.nodes) == 1
                (ping,) = machine.receive(await newer.receive())
                assert isinstance(ping, m.Ping)


async def test_law4_bytes_of_one_frame_cost_one_matching(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a frame of small words would hold up everybody's steps."""
    num_matchings = 0

    def rematch(leases: Leases) -> None:
        nonlocal num_matchings
        num_matchings += 1

    async with running_swarm() as swarm, dialled(swarm) as link:
        machine, _ = await greet(link)
        await trio.sleep(0.1)
        monkeypatch.setattr(Leases, "rematch", rematch)
        await link.send(machine.send(*[m.Capacity(i % 3) for i in range(1000)]))
        await trio.sleep(0.1)
        (node,) = swarm.coordinator.leases.nodes
        assert node.max_sessions == 0
        assert num_matchings == 1
