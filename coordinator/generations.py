"""The door from the gateway to the sessions."""

import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from coordinator.gateway.ports import (
    FinishEvent,
    GenerationEvent,
    GenerationRequest,
    ModelCard,
    Refused,
)
from coordinator.rounds import Rounds
from coordinator.sessions import Session, Sessions
from coordinator.target_text import StoppedText, TextCodec
from coordinator.trial import Trial
from specedge_p2p.lm.chat_template import TemplateRefused
from specedge_p2p.lm.text_bounds import TextTooLong
from specedge_p2p.names import SessionId
from specedge_p2p.noise import noise_key, seed_bytes


class LiveGenerations:
    """Implements gateway.ports.Generations on the rounds."""

    def __init__(
        self,
        rounds: Rounds,
        sessions: Sessions,
        codec: TextCodec,
        trial: Trial,
        model_card: Callable[[], ModelCard | None],
        clock: Callable[[], float],
    ) -> None:
        self._rounds, self._sessions, self._codec = rounds, sessions, codec
        self._trial = trial
        self._model_card, self._clock = model_card, clock
        self._stopping = ""

    def models(self) -> tuple[ModelCard, ...]:
        card = self._model_card()
        return (card,) if card is not None else ()

    def is_ready(self) -> tuple[bool, str]:
        if self._stopping:
            return False, self._stopping
        if self._model_card() is None:
            return False, "the engine is loading its model"
        return True, ""

    def stop(self, reason: str) -> None:
        """Take no new requests and end the live ones with an error that the client may retry."""
        self._stopping = reason
        self._rounds.fail_all(Refused(503, "shutting_down", reason, retry_after_s=1))

    def encode(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(self._codec.encode(text, self._max_context()))
        except TextTooLong as error:
            raise _too_long(error, "prompt") from error

    def encode_chat(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        try:
            return tuple(self._codec.encode_chat(messages, self._max_context()))
        except TextTooLong as error:
            raise _too_long(error, "messages") from error
        except TemplateRefused as error:
            raise Refused(400, "invalid_messages", str(error), param="messages") from error

    def _max_context(self) -> int | None:
        card = self._model_card()
        return None if card is None else card.max_context

    @asynccontextmanager
    async def generate(
        self, request: GenerationRequest
    ) -> AsyncIterator[AsyncIterator[GenerationEvent]]:
        session = self._new_session(request)
        self._rounds.open(session)
        try:
            yield _events(session)
        finally:
            self._rounds.close(session, session.finish or "cancelled")

    def _new_session(self, request: GenerationRequest) -> Session:
        is_ready, why_not = self.is_ready()
        card = self._model_card()
        if card is None or not is_ready:
            raise Refused(503, "not_ready", why_not, retry_after_s=1)
        if request.model != card.id:
            raise Refused(
                404,
                "model_not_found",
                f"the model {request.model!r} is not served here; this coordinator has {card.id!r}",
                param="model",
            )
        self._sessions.refuse_when_full()
        max_tokens = _max_tokens(request, card.max_context)
        seed = os.urandom(16) if request.seed is None else seed_bytes(request.seed)
        arm = self._trial.arm(request.volunteers)
        if arm == "holdout":
            request = replace(request, volunteers="none")
        return Session(
            number=self._sessions.next_number(),
            session_id=SessionId(secrets.token_hex(12)),
            request=request,
            noise_key=noise_key(seed, request.prompt_ids),
            max_tokens=max_tokens,
            text=StoppedText(self._codec, request.stop, request.prompt_ids),
            opened_s=self._clock(),
            arm=arm,
        )


async def _events(session: Session) -> AsyncIterator[GenerationEvent]:
    while True:
        for event in await session.events():
            yield event
            if isinstance(event, FinishEvent):
                return


def _too_long(error: TextTooLong, param: str) -> Refused:
    text = f"the prompt is longer than the context of this model: {error}"
    return Refused(400, "context_length_exceeded", text, param=param)


def _max_tokens(request: GenerationRequest, max_context: int) -> int:
    num_prompt = len(request.prompt_ids)
    if num_prompt == 0:
        raise Refused(400, "empty_prompt", "the prompt has no tokens", param="prompt")
    room = max_context - num_prompt
    if room < 1:
        raise Refused(
            400,
            "context_length_exceeded",
            f"the prompt has {num_prompt} tokens, the context of this model ends at {max_context}",
            param="messages",
        )
    return room if request.max_tokens is None else min(room, request.max_tokens)
