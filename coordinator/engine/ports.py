"""What the coordinator may ask of an engine, be it a process or inline."""

from typing import Protocol

from coordinator.engine.messages import FromEngine, ToEngine
from specedge_p2p.errors import ClearError


class EngineError(ClearError):
    """The engine cannot be started; the text says what to do."""


class Engine(Protocol):
    """An engine that is supervised by whoever made it.

    The first message received is Ready. After a crash come EngineDied and, when the respawned
    process has loaded its model, Ready again: the coordinator then opens its live sessions anew.
    What is sent between the two is dropped.
    """

    @property
    def is_ready(self) -> bool: ...

    @property
    def num_restarts(self) -> int: ...

    async def send(self, *messages: ToEngine) -> None:
        """Hand over messages in order; waits while the bounded queue is full."""
        ...

    async def receive(self) -> FromEngine:
        """The next message. Raises EngineError when the engine cannot be brought back."""
        ...
