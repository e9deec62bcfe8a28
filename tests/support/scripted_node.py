"""A node for tests of the coordinator: the real link machine, no drafter, any behaviour."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from specedge_p2p.lm.toy_text import ToyText
from specedge_p2p.overlay.memory import MemoryOverlay, address_of
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL, Link
from specedge_p2p.wire.codec import AnyMessage
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.messages import Hello, Message, Open, Ping, Pong, Prompt, Verdict, Welcome
from tests.support.swarm import VOCAB, Swarm, identity

_M = TypeVar("_M", bound=Message)
HELLO = Hello(1, 1, "toy-draft", bytes(16), ToyText(VOCAB).fingerprint(), 8, 0.01)


class ScriptedNode:
    """Says what a test wants; whatever it reads is checked by the link machine."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.machine = LinkMachine("node")
        self.heard: list[AnyMessage] = []
        self._unread: list[AnyMessage] = []
        self._saying = trio.Lock()

    async def say(self, *messages: AnyMessage) -> None:
        """All in one frame; frames leave in the order in which the machine knows them."""
        async with self._saying:
            await self.link.send(self.machine.send(*messages))

    async def hear(self, kind: type[_M], within_s: float = 30.0) -> _M:
        """The next message of a kind; what comes before it is kept in `heard` only."""
        with trio.fail_after(within_s):
            while True:
                message = await self._next()
                if isinstance(message, kind):
                    return message

    async def greet(self, hello: Hello = HELLO) -> Welcome:
        await self.say(hello)
        return await self.hear(Welcome)

    async def hear_session(self) -> Open:
        """The next session, prompt and all."""
        opened = await self.hear(Open)
        while not self.machine.session(opened.session_no).is_ready:
            await self.hear(Prompt)
        return opened

    async def hear_tokens(self, num_committed: int) -> None:
        """Read verdicts until some session has this many committed tokens."""
        while True:
            verdict = await self.hear(Verdict)
            number = verdict.session_no
            if self.machine.is_open(number) and self.machine.committed(number) >= num_committed:
                return

    async def read_for_ever(self) -> None:
        while True:
            await self._next()

    async def _next(self) -> AnyMessage:
        while not self._unread:
            self._unread += self.machine.receive(await self.link.receive())
            self.heard += self._unread
        message = self._unread.pop(0)
        if isinstance(message, Ping):
            await self.say(Pong(message.nonce))
        return message


@asynccontextmanager
async def dialled(swarm: Swarm, overlay: MemoryOverlay) -> AsyncIterator[ScriptedNode]:
    """One link of a node, closed on leaving; dial again to come back."""
    async with overlay.dial(address_of(swarm.identity.peer_id), DRAFT_PROTOCOL) as link:
        yield ScriptedNode(link)


@asynccontextmanager
async def scripted_node(swarm: Swarm, number: int = 1) -> AsyncIterator[ScriptedNode]:
    async with dialled(swarm, swarm.network.join(identity(number).peer_id)) as node:
        yield node


async def settled(swarm: Swarm) -> None:
    """Long enough for everything said to be heard and answered."""
    await trio.sleep(4 * swarm.settings.latency_s + 2 * swarm.settings.step_time_s)
