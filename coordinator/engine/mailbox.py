"""Both directions between the coordinator and an engine that may die and come back.

Each life of the engine has a channel of its own, so that nothing meant for a dead one reaches its
successor: what is sent before the coordinator has taken the new `Ready` is dropped.
"""

import trio

from coordinator.engine.messages import EngineDied, FromEngine, Ready, ToEngine
from coordinator.engine.ports import EngineError

Letters = tuple[ToEngine, ...]


class Mailbox:
    """The coordinator's side implements `ports.Engine`'s send and receive.

    Args:
        max_to_engine: calls of `send` that may wait before the next one blocks.
        max_from_engine: messages that may wait to be received before the engine is held up.
    """

    def __init__(self, max_to_engine: int = 64, max_from_engine: int = 256) -> None:
        self._max_to_engine = max_to_engine
        self._to_engine: trio.MemorySendChannel[Letters] | None = None
        self._send_reply, self._replies = trio.open_memory_channel[tuple[int, FromEngine]](
            max_from_engine
        )
        self._life = 0
        self._is_ready = False
        self._error = "the engine was stopped"

    # --- the coordinator's side ------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """The coordinator has taken `Ready` and the engine lives."""
        return self._is_ready

    @property
    def num_restarts(self) -> int:
        return max(0, self._life - 1)

    async def send(self, *messages: ToEngine) -> None:
        """Hand over messages; waits while the queue is full, drops them while nobody is there."""
        channel = self._to_engine
        if not self._is_ready or channel is None:
            await trio.lowlevel.checkpoint()
            return
        try:
            await channel.send(messages)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it died meanwhile: EngineDied is on its way to the coordinator

    async def receive(self) -> FromEngine:
        try:
            life, message = await self._replies.receive()
        except trio.EndOfChannel:
            raise EngineError(self._error) from None
        if isinstance(message, Ready):
            self._is_ready = self._to_engine is not None and life == self._life
        return message

    # --- the engine's side -----------------------------------------------------------------------

    def begin(self) -> trio.MemoryReceiveChannel[Letters]:
        """A new life begins; returns where its messages come from."""
        self._to_engine, inbox = trio.open_memory_channel[Letters](self._max_to_engine)
        self._life += 1
        return inbox

    async def deliver(self, message: FromEngine) -> None:
        """Pass a message to the coordinator; waits while its queue is full."""
        await self._send_reply.send((self._life, message))

    async def end(self, text: str) -> None:
        """This life is over: whoever waits in `send` goes on, and the coordinator is told."""
        self.close_inbox()
        await self.deliver(EngineDied(text))

    def close_inbox(self) -> None:
        self._is_ready = False
        if self._to_engine is not None:
            self._to_engine.close()
            self._to_engine = None

    def give_up(self, text: str) -> None:
        """No further life will come: `receive` raises EngineError once it has drained."""
        self.close_inbox()
        self._error = text
        self._send_reply.close()


class MailboxEngine:
    """What every engine behind a mailbox shares: the coordinator's side of `ports.Engine`."""

    def __init__(self) -> None:
        self._mailbox = Mailbox()

    @property
    def is_ready(self) -> bool:
        return self._mailbox.is_ready

    @property
    def num_restarts(self) -> int:
        return self._mailbox.num_restarts

    async def send(self, *messages: ToEngine) -> None:
        await self._mailbox.send(*messages)

    async def receive(self) -> FromEngine:
        return await self._mailbox.receive()
