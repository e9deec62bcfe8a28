"""A node's link at the coordinator whose frames the node's own machine judges."""

import trio
import trio.testing

from coordinator.node_link import NodeLink
from specedge_p2p.names import PeerId
from specedge_p2p.wire.codec import AnyMessage
from specedge_p2p.wire.link_machine import LinkMachine
from tests.support.links import HELLO, WELCOME, changed

CONTEXT = 60_000


class Wire:
    """Takes frames and lets the node's own machine judge them."""

    def __init__(self, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.machine = LinkMachine("node")
        self.frames: list[tuple[AnyMessage, ...]] = []

    async def send(self, frame: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.frames.append(self.machine.receive(frame))

    async def receive(self) -> bytes:
        return await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    @property
    def messages(self) -> list[AnyMessage]:
        return [message for frame in self.frames for message in frame]


async def open_link(max_sessions: int = 64, name: str = "a") -> tuple[NodeLink, Wire]:
    wire, ours = Wire(PeerId(name)), LinkMachine("coordinator")
    hello = changed(HELLO, max_sessions=max_sessions)
    ours.receive(wire.machine.send(hello))
    await wire.send(ours.send(changed(WELCOME, max_context=CONTEXT)))
    wire.frames.clear()
    return NodeLink(wire, hello, ours, 0.0, max_sessions), wire


async def write_all(node: NodeLink) -> None:
    """Until nothing is left to send."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.write_frames, trio.current_time)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
