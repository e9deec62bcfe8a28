"""Prompts to tokens, beside the event loop."""

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


class Tokenizing:
    """Tokenizing a long prompt takes long: it runs in a thread, one prompt at a time.

    Callers take turns: of each only one prompt stands in line, so nobody waits for more than one
    prompt of every other caller, however many those have.
    """

    def __init__(self) -> None:
        self._thread = trio.CapacityLimiter(1)
        self._turns: dict[str, trio.Lock] = {}

    async def run(self, caller: str, work: Callable[[], T]) -> T:
        """Do `work` when it is the caller's turn. Both lines are first come, first served."""
        turn = self._turns.setdefault(caller, trio.Lock())
        try:
            async with turn:
                return await trio.to_thread.run_sync(work, limiter=self._thread)
        finally:
            if not turn.locked():  # it goes from hand to hand: nobody waits
                self._turns.pop(caller, None)
