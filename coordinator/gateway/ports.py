"""What the gateway may ask of the coordinator, and what it hears back."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.names import PeerId, SessionId

Volunteers = Literal["any", "allowed", "none"]
"""Who may draft for a request: every node, the host's list of peer ids, nobody."""

FinishReason = Literal["stop", "length"]


class Refused(Exception):
    """The coordinator does not take the request. `status` is the HTTP status to answer with."""

    def __init__(
        self, status: int, code: str, text: str, *, param: str = "", retry_after_s: float = 0
    ) -> None:
        super().__init__(text)
        self.status, self.code, self.text, self.param = status, code, text, param
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    model: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int | None
    max_tokens: int | None
    """None: up to the context limit."""
    stop: tuple[str, ...] = ()
    volunteers: Volunteers = "any"
    key_id: str = ""
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GuessedToken:
    """One committed token and who guessed it: a peer id, "ngram", or "" for the target itself."""

    token_id: int
    guessed_by: str


@dataclass(frozen=True, slots=True)
class TextEvent:
    """Text that may be shown, and the tokens that were committed since the last event."""

    text: str
    tokens: tuple[GuessedToken, ...]


@dataclass(frozen=True, slots=True)
class GenerationStats:
    session_id: SessionId
    num_prompt_tokens: int
    num_tokens: int
    num_rounds: int
    num_drafted_rounds: int
    num_drafted_tokens: int
    """Tokens committed in rounds that verified rows of a node."""
    num_accepted_by_node: dict[PeerId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of a generation."""

    reason: FinishReason
    stats: GenerationStats


GenerationEvent = TextEvent | FinishEvent


@dataclass(frozen=True, slots=True)
class ModelCard:
    id: str
    created: int
    max_context: int
    vocab_size: int


class Generations(Protocol):
    """The door from the gateway to the coordinator.

    `encode` and `encode_chat` are called in a worker thread, one call at a time.
    """

    def models(self) -> tuple[ModelCard, ...]: ...

    def is_ready(self) -> tuple[bool, str]:
        """Whether requests can be served now, and why not."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain prompt, with the tokenizer's own special tokens (BOS) in front.

        Raises Refused(400), without the work, for a text that no context of this model could hold.
        """
        ...

    def encode_chat(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """Token ids of a chat through the model's template.

        Raises Refused(400) as `encode` does, and for messages that the template does not take.
        """
        ...

    def generate(
        self, request: GenerationRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[GenerationEvent]]:
        """Run a generation; leaving the context cancels it. Raises Refused on entering.

        The iterator raises Refused(5xx) when the generation is lost midway.
        """
        ...
