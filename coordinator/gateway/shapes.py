"""Answers in OpenAI's form, for chats and for plain completions."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Protocol

from coordinator.gateway.ports import FinishReason, GenerationStats, GuessedToken, ModelCard

Json = dict[str, object]


def model_json(card: ModelCard) -> Json:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "specedge",
        "max_model_len": card.max_context,
    }


def usage_json(stats: GenerationStats) -> Json:
    return {
        "prompt_tokens": stats.num_prompt_tokens,
        "completion_tokens": stats.num_tokens,
        "total_tokens": stats.num_prompt_tokens + stats.num_tokens,
    }


def stats_json(stats: GenerationStats) -> Json:
    """The project's own extension, for clients that asked for it."""
    return {
        "session_id": stats.session_id,
        "num_prompt_tokens": stats.num_prompt_tokens,
        "num_tokens": stats.num_tokens,
        "num_rounds": stats.num_rounds,
        "num_drafted_rounds": stats.num_drafted_rounds,
        "num_drafted_tokens": stats.num_drafted_tokens,
        "num_accepted_by_node": stats.num_accepted_by_node,
    }


def sources_json(tokens: tuple[GuessedToken, ...]) -> Json:
    return {"tokens": [[token.token_id, token.guessed_by] for token in tokens]}


@dataclass(frozen=True, slots=True)
class FullText:
    """Everything a generation gave."""

    text: str
    tokens: tuple[GuessedToken, ...]
    reason: FinishReason
    stats: GenerationStats


class Shape(Protocol):
    """How one answer is written down."""

    def opening(self) -> Json | None:
        """The chunk before any text, if there is one."""
        ...

    def delta(self, text: str) -> Json: ...

    def finish(self, reason: FinishReason) -> Json: ...

    def usage(self, stats: GenerationStats) -> Json: ...

    def whole(self, full: FullText) -> Json: ...


@dataclass(frozen=True, slots=True)
class _Named:
    model: str
    wants_usage: bool
    """Streams carry `usage` in every chunk then, null in all but the last."""
    created: int = field(default_factory=lambda: int(time.time()))

    def _base(self, answer_id: str, kind: str) -> Json:
        return {"id": answer_id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, answer_id: str, kind: str, choice: Json) -> Json:
        chunk = self._base(answer_id, kind) | {"choices": [{"index": 0} | choice]}
        return chunk | {"usage": None} if self.wants_usage else chunk


@dataclass(frozen=True, slots=True)
class ChatShape(_Named):
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")

    def _delta(self, delta: Json, reason: FinishReason | None = None) -> Json:
        choice: Json = {"delta": delta, "logprobs": None, "finish_reason": reason}
        return self._chunk(self.id, "chat.completion.chunk", choice)

    def opening(self) -> Json | None:
        return self._delta({"role": "assistant", "content": "", "refusal": None})

    def delta(self, text: str) -> Json:
        return self._delta({"content": text})

    def finish(self, reason: FinishReason) -> Json:
        return self._delta({}, reason)

    def usage(self, stats: GenerationStats) -> Json:
        base = self._base(self.id, "chat.completion.chunk")
        return base | {"choices": [], "usage": usage_json(stats)}

    def whole(self, full: FullText) -> Json:
        message: Json = {"role": "assistant", "content": full.text, "refusal": None}
        choice: Json = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": full.reason,
        }
        base = self._base(self.id, "chat.completion")
        return base | {"choices": [choice], "usage": usage_json(full.stats)}


@dataclass(frozen=True, slots=True)
class CompletionShape(_Named):
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")

    def _text(self, text: str, reason: FinishReason | None = None) -> Json:
        choice: Json = {"text": text, "logprobs": None, "finish_reason": reason}
        return self._chunk(self.id, "text_completion", choice)

    def opening(self) -> Json | None:
        return None

    def delta(self, text: str) -> Json:
        return self._text(text)

    def finish(self, reason: FinishReason) -> Json:
        return self._text("", reason)

    def usage(self, stats: GenerationStats) -> Json:
        base = self._base(self.id, "text_completion")
        return base | {"choices": [], "usage": usage_json(stats)}

    def whole(self, full: FullText) -> Json:
        choice: Json = {
            "index": 0,
            "text": full.text,
            "logprobs": None,
            "finish_reason": full.reason,
        }
        base = self._base(self.id, "text_completion")
        return base | {"choices": [choice], "usage": usage_json(full.stats)}
