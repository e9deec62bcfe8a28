"""A coordinator that says what a test wrote down."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from coordinator.gateway.ports import (
    FinishEvent,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    GenerationStats,
    GuessedToken,
    ModelCard,
    Refused,
    TextEvent,
)
from specedge_p2p.names import PeerId, SessionId

MODEL = "demo-target"
NODE = PeerId("12D3KooWNode")


@dataclass
class Script:
    """What every generation does."""

    texts: tuple[str, ...] = ("Hello", ", ", "world")
    reason: FinishReason = "stop"
    delay_s: float = 0
    """Before each text."""
    refusal: Refused | None = None
    """Raised on entering."""
    lost: Refused | None = None
    """Raised after the texts, in place of the end."""
    hangs: bool = False
    """Waits for ever after the texts, in place of the end."""
    is_endless: bool = False
    """Repeats its texts for ever."""
    bug: Exception | None = None
    """Raised on entering; nothing the gateway knows."""


@dataclass
class _Loss:
    refusal: Refused | None = None


@dataclass
class FakeGenerations:
    script: Script = field(default_factory=Script)
    ready: tuple[bool, str] = (True, "")
    num_live: int = 0
    num_texts: int = 0
    requests: list[GenerationRequest] = field(default_factory=list)
    chats: list[list[dict[str, str]]] = field(default_factory=list)
    may_encode: threading.Event = field(default_factory=threading.Event)
    """Cleared, tokenizing a prompt does not end."""
    has_begun: threading.Event = field(default_factory=threading.Event)
    """A prompt is being tokenized, or was."""

    def __post_init__(self) -> None:
        self.may_encode.set()

    def say(self, **changes: object) -> None:
        self.script = replace(self.script, **changes)  # type: ignore[arg-type]

    def models(self) -> tuple[ModelCard, ...]:
        return (ModelCard(MODEL, created=1_700_000_000, max_context=256, vocab_size=1000),)

    def is_ready(self) -> tuple[bool, str]:
        return self.ready

    def encode(self, text: str) -> tuple[int, ...]:
        self.has_begun.set()
        self.may_encode.wait(20)
        return tuple(ord(character) % 1000 for character in text)

    def encode_chat(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        self.chats.append(messages)
        if messages[-1]["role"] == "assistant":
            raise Refused(400, "invalid_value", "The last message is the assistant's.")
        return self.encode("".join(message["content"] for message in messages))

    @asynccontextmanager
    async def generate(
        self, request: GenerationRequest
    ) -> AsyncIterator[AsyncIterator[GenerationEvent]]:
        self.requests.append(request)
        if self.script.bug is not None:
            raise self.script.bug
        if self.script.refusal is not None:
            raise self.script.refusal
        self.num_live += 1
        into, events = trio.open_memory_channel[GenerationEvent](0)
        loss = _Loss()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._play, request, into, loss)
                yield _until_the_end(events, loss)
                nursery.cancel_scope.cancel()
        finally:
            self.num_live -= 1

    async def _play(
        self,
        request: GenerationRequest,
        into: trio.MemorySendChannel[GenerationEvent],
        loss: _Loss,
    ) -> None:
        script = self.script
        is_first_pass = True
        async with into:
            while is_first_pass or script.is_endless:
                is_first_pass = False
                for token_id, text in enumerate(script.texts):
                    await trio.sleep(script.delay_s)
                    guessed_by = NODE if token_id % 2 else ""
                    await into.send(TextEvent(text, (GuessedToken(token_id, guessed_by),)))
                    self.num_texts += 1
            if script.hangs:
                await trio.sleep_forever()
            if script.lost is not None:
                loss.refusal = script.lost
            else:
                await into.send(FinishEvent(script.reason, self._stats(request)))

    def _stats(self, request: GenerationRequest) -> GenerationStats:
        num_tokens = len(self.script.texts)
        return GenerationStats(
            session_id=SessionId("session-1"),
            num_prompt_tokens=len(request.prompt_ids),
            num_tokens=num_tokens,
            num_rounds=2,
            num_drafted_rounds=1,
            num_drafted_tokens=2,
            num_accepted_by_node={NODE: num_tokens // 2},
        )


async def _until_the_end(
    events: trio.MemoryReceiveChannel[GenerationEvent], loss: _Loss
) -> AsyncIterator[GenerationEvent]:
    """Events, then the refusal if there is one."""
    async for event in events:
        yield event
    if loss.refusal is not None:
        raise loss.refusal
