"""A model's tokenizer without torch: the `tokenizers` library and the chat template.

transformers' own tokenizer classes import torch, which the coordinator's process does not want.
"""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as FastTokenizer

from specedge_p2p.lm.chat_template import TemplateRefused as TemplateRefused
from specedge_p2p.lm.chat_template import render_chat
from specedge_p2p.lm.detokenizer import IncrementalDetokenizer as IncrementalDetokenizer
from specedge_p2p.lm.detokenizer import StopStrings as StopStrings
from specedge_p2p.lm.files import TOKENIZER_FILES, Progress, find_model
from specedge_p2p.lm.ports import ModelError
from specedge_p2p.lm.text_bounds import longest_token, refuse_too_long

_NAMED_SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")


class TextCodec(Protocol):
    """Text to tokens and back. `ToyText` is the other one."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Raises TextTooLong, at once, for a text that must be more than `max_tokens`."""
        ...

    def encode_chat(
        self, messages: Sequence[dict[str, str]], max_tokens: int | None = None
    ) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def detokenizer(self) -> IncrementalDetokenizer: ...

    def fingerprint(self) -> bytes: ...


class Tokenizer:
    """The tokenizer that lies beside a model's weights."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"no tokenizer.json in {folder}: only fast tokenizers are supported")
        # The library raises plain Exception for a broken file: parse the JSON first.
        content = _read_json(folder / "tokenizer.json")
        self._fast = FastTokenizer.from_str(json.dumps(content))
        self._longest_token = longest_token(content)
        self._fast.no_truncation()
        self._fast.no_padding()
        settings = {}
        if (folder / "tokenizer_config.json").is_file():
            settings = _read_json(folder / "tokenizer_config.json")
        self._specials = {
            name: _token_text(settings[name]) for name in _NAMED_SPECIALS if settings.get(name)
        }
        self._template = _chat_template(folder, settings)

    @classmethod
    def load(cls, name_or_path: str, *, progress: Progress | None = None) -> "Tokenizer":
        """Load by the names that `load_model` takes. Raises ModelError."""
        return cls(find_model(name_or_path, patterns=TOKENIZER_FILES, progress=progress))

    @property
    def vocab_size(self) -> int:
        """Tokens with added ones; a model's logits may have more columns, never fewer."""
        return int(self._fast.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Token ids with the special tokens that the tokenizer adds itself.

        An empty result becomes the beginning of sequence, where there is one. Raises TextTooLong,
        at once, for a text that must be more than `max_tokens`.
        """
        refuse_too_long(text, self._longest_token, max_tokens)
        ids = list(self._fast.encode(text).ids)
        if ids or "bos_token" not in self._specials:
            return ids
        bos = self._fast.token_to_id(self._specials["bos_token"])
        return [] if bos is None else [bos]

    def encode_chat(
        self, messages: Sequence[dict[str, str]], max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of a chat, ready for the assistant's turn.

        Raises TemplateRefused, also when the model has no chat template, and TextTooLong: of what
        the template makes of the messages, since it may leave out much of them.
        """
        if self._template is None:
            raise TemplateRefused("this model has no chat template: use plain completions")
        text = render_chat(self._template, messages, self._specials)
        refuse_too_long(text, self._longest_token, max_tokens)
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; ids beyond the tokenizer's vocabulary yield nothing."""
        return str(self._fast.decode(list(token_ids), skip_special_tokens=True))

    def detokenizer(self) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(self.decode)

    def fingerprint(self) -> bytes:
        """16 bytes over what maps text to tokens: vocabulary, merges and added tokens."""
        parts = json.loads(self._fast.to_str())
        model = parts["model"]
        content = [model.get("type"), model.get("vocab"), model.get("merges")]
        text = json.dumps([*content, parts["added_tokens"]], sort_keys=True)
        return blake2b(text.encode(), digest_size=16).digest()


def _read_json(path: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _token_text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
