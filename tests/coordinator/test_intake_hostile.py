"""What a bad peer's bytes cost: its own link, and nobody else anything."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from specedge_p2p.overlay.ports import LinkClosed
from specedge_p2p.wire.codec import encode_frame
from specedge_p2p.wire.messages import Drain, Goodbye, Ping, Pong, Release
from tests.support.links import proposal
from tests.support.scripted_node import HELLO, scripted_node, settled
from tests.support.swarm import identity, running_swarm

HOSTILE = [
    b"",
    b"\xc1 garbage",
    encode_frame([HELLO, HELLO]),
    encode_frame([proposal([1], [0], session_no=7)]),  # of a session that never was
    encode_frame([Release(9)]),
    encode_frame([Goodbye(), Pong(1)]),
    encode_frame([Drain("mine")]),  # a coordinator's word
    encode_frame([Ping(1)]),
]


@pytest.mark.parametrize("greets", [False, True])
@pytest.mark.parametrize("frame", HOSTILE)
async def test_law4_bytes_cost_the_link_that_brought_them(
    autojump_clock: MockClock, frame: bytes, greets: bool
) -> None:
    async with running_swarm() as swarm, scripted_node(swarm, 1) as bad:
        if greets:
            await bad.greet()
        async with scripted_node(swarm, 2) as good:
            await good.greet()
            await bad.link.send(frame)
            with pytest.raises(LinkClosed):
                await bad.read_for_ever()
            assert [node.peer_id for node in swarm.coordinator.leases.nodes] == [
                identity(2).peer_id
            ]
            assert swarm.coordinator.intake.num_protocol_errors == 1
            await good.hear(Ping)
            await good.hear(Ping)


@given(frames=st.lists(st.binary(max_size=80), min_size=1, max_size=5), greets=st.booleans())
def test_law4_bytes_any_garbage(frames: list[bytes], greets: bool) -> None:
    async def run() -> None:
        async with running_swarm() as swarm, scripted_node(swarm) as node:
            if greets:
                await node.greet()
            for frame in frames:
                try:
                    await node.link.send(frame)
                except LinkClosed:
                    break
            await settled(swarm)
            assert not swarm.coordinator.leases.nodes
            assert swarm.coordinator.intake.num_protocol_errors == 1

    trio.run(run, clock=MockClock(autojump_threshold=0))
