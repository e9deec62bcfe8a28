"""What clients may send: OpenAI's request fields, checked strictly, and this server's own.

Unknown fields are ignored as OpenAI's servers do, but a known field that would change the answer
and is not built here is refused with `unsupported_parameter`: nobody gets a silent half-answer.

Bodies are checked in the event loop, so a body of any content costs little: a list is checked once,
in the one form that its first item has, and only up to its first wrong item.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from coordinator.gateway.errors import encodable
from coordinator.gateway.misspelt import MAX_FIELDS, refuse_misspelt
from coordinator.gateway.ports import Volunteers
from specedge_p2p.lm.ports import SamplingParams

MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 256
MAX_MESSAGES = 4096
MAX_PARTS = 4096
"""Of all messages together."""
LEAST_TEMPERATURE = 1e-5
"""What is colder is greedy."""

T = TypeVar("T")
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, lt=2**24)]
Text = Annotated[str, Field(max_length=2**32)]
"""A constraint that always holds: it makes pydantic look at the characters, and so refuse halves of
surrogate pairs, which no tokenizer takes."""
ListOf = Annotated[list[T], Field(fail_fast=True)]


def _form(value: object) -> str | None:
    """Which form a value is checked as. Pydantic would try one after the other, item by item.

    The mark tells forms from fields where an error says what it is about.
    """
    if isinstance(value, str):
        return "#text"
    return "#list" if isinstance(value, list) else None


def _prompt_form(value: object) -> str | None:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return "#texts"
    return _form(value)


def _by(form: Callable[[object], str | None]) -> Discriminator:
    return Discriminator(
        form,
        custom_error_type="text_or_list_type",
        custom_error_message="Input should be a text or a list",
    )


Stop = Annotated[
    Annotated[StopString, Tag("#text")]
    | Annotated[ListOf[StopString], Field(max_length=MAX_STOP_STRINGS), Tag("#list")],
    _by(_form),
]
Prompt = Annotated[
    Annotated[Text, Tag("#text")]
    | Annotated[ListOf[Text], Tag("#texts")]
    | Annotated[ListOf[TokenId], Tag("#list")],
    _by(_prompt_form),
]

_EMPTY: tuple[object, ...] = (None, [], {})
_OFF: tuple[object, ...] = (None, 0, False)

# Field -> the values that ask for nothing.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "tools": _EMPTY,
    "functions": _EMPTY,
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": _EMPTY,
    "prediction": _EMPTY,
    "web_search_options": _EMPTY,
    "logit_bias": _EMPTY,
    "logprobs": (None, False),
    "top_logprobs": _OFF,
    "presence_penalty": _OFF,
    "frequency_penalty": _OFF,
    "repetition_penalty": (None, 1),
    "echo": (None, False),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "n": (None, 1),
}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class SpecEdgeOptions(_Strict):
    """Extensions for this project's own clients; nothing else, such as `volunteers`, goes here."""

    model_config = ConfigDict(extra="forbid")

    sources: bool = False
    """Tell with every token who guessed it, and give the generation's statistics at the end."""


class StreamOptions(_Strict):
    include_usage: bool = False


class TextPart(_Strict):
    type: Literal["text"]
    text: Text


def _unsupported(param: str, text: str) -> PydanticCustomError:
    # Braces in a client's words must not be taken for placeholders.
    return PydanticCustomError("unsupported_parameter", "{text}", {"param": param, "text": text})


Content = Annotated[
    Annotated[Text, Tag("#text")] | Annotated[ListOf[TextPart], Tag("#list")], _by(_form)
]


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        if data.get("role") in ("tool", "function") or data.get("tool_calls"):
            raise _unsupported("messages", "Tool calls in messages are not supported.")
        content = data.get("content")
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict):
                break  # refused as no part at all
            kind = part.get("type", "text")
            if isinstance(kind, str) and kind != "text":
                text = f"Message parts of type '{encodable(kind[:40])}' are not supported."
                raise _unsupported("messages", text)
        return data

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs content")
        return self

    def plain(self) -> dict[str, str]:
        """Role and text as chat templates know them."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, list):
            return {"role": role, "content": "".join(part.text for part in self.content)}
        return {"role": role, "content": self.content or ""}


class _GenerationFields(_Strict):
    model: str = Field(min_length=1, max_length=512)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    """None: 1. 0 is greedy."""
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**24)
    """None, 0 and -1: every token."""
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """The same seed, prompt and parameters give the same text. None: a fresh one."""
    stop: Stop | None = None
    ignore_eos: bool | None = None
    """Go on past the end-of-sequence token, for measurements."""
    volunteers: Volunteers | None = None
    """Who may see the prompt and draft for it. None: what the API key says."""
    specedge: SpecEdgeOptions | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_FIELDS:
            raise ValueError(f"the request body has more than {MAX_FIELDS} fields")
        for name, neutral in _NEUTRAL.items():
            if name in data and data[name] not in neutral:
                raise _unsupported(
                    name, f"'{name}' with this value is not supported by this server."
                )
        refuse_misspelt(name for name in data if name not in cls.model_fields)
        return data

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed with 'stream': true")
        return self

    def sampling(self) -> SamplingParams:
        temperature = 1.0 if self.temperature is None else self.temperature
        # An empty nucleus leaves only the best token, as does a temperature by which logits could
        # not be divided: in float32 they would overflow, and 0 / 0 is no token at all.
        if self.top_p == 0 or temperature < LEAST_TEMPERATURE:
            temperature = 0.0
        return SamplingParams(
            temperature=temperature,
            top_k=max(0, self.top_k or 0),
            top_p=self.top_p or 1.0,
            min_p=self.min_p or 0.0,
        )

    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_sources(self) -> bool:
        return self.specedge is not None and self.specedge.sources

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def token_limit(self) -> int | None:
        """Most tokens to generate; None: up to the context limit."""
        raise NotImplementedError


class ChatRequest(_GenerationFields):
    """Body of `/v1/chat/completions`. Without a limit it runs up to the end of the context."""

    messages: ListOf[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    """The newer name; it wins over `max_tokens`."""

    @model_validator(mode="before")
    @classmethod
    def _few_parts(cls, data: object) -> object:
        messages = data.get("messages") if isinstance(data, dict) else None
        if isinstance(messages, list):
            contents = (each.get("content") for each in messages if isinstance(each, dict))
            if sum(len(content) for content in contents if isinstance(content, list)) > MAX_PARTS:
                raise ValueError(f"'messages' take at most {MAX_PARTS} parts")
        return data

    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_GenerationFields):
    """Body of `/v1/completions`. Without a limit it gives 16 tokens, as OpenAI's does."""

    prompt: Prompt
    """A text, a list of one text, or token ids."""
    max_tokens: int | None = Field(16, ge=1, le=2**31 - 1)

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if not self.prompt:
            raise ValueError("'prompt' must not be empty")
        if isinstance(self.prompt, list) and isinstance(self.prompt[0], str):
            if len(self.prompt) > 1:
                raise ValueError("'prompt' takes one text per request")
            if not self.prompt[0]:
                raise ValueError("'prompt' must not be empty")
        return self

    def prompt_ids(self, encode: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
        """The prompt's token ids; `encode` is used when it was given as text."""
        if isinstance(self.prompt, str):
            return encode(self.prompt)
        ids: list[int] = []
        for part in self.prompt:
            if isinstance(part, str):
                return encode(part)
            ids.append(part)
        return tuple(ids)

    def token_limit(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens
