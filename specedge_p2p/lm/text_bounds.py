"""How much text a token can stand for: by that a prompt is too long before it is tokenized."""

from collections.abc import Mapping
from typing import Any, Final

from tokenizers.pre_tokenizers import ByteLevel

MAX_COMPOSED: Final = 4
"""Characters that Unicode's normal forms make one at most."""
_COMPOSING: Final = frozenset(("NFC", "NFD", "NFKC", "NFKD"))
_KEEPS_ALL: Final = frozenset(("ByteLevel", "Metaspace", "Digits", "Split", "Punctuation"))

Json = Mapping[str, Any]


class TextTooLong(ValueError):
    """A text cannot be as few tokens as it may be; the text says how long it is."""


def refuse_too_long(text: str, longest: int | None, max_tokens: int | None) -> None:
    """Raises TextTooLong for a text that has more than `max_tokens` tokens of any length."""
    if longest is None or max_tokens is None or len(text) <= longest * max_tokens:
        return
    raise TextTooLong(f"{len(text)} characters are more than {max_tokens} tokens")


def longest_token(tokenizer: Json) -> int | None:
    """Most characters that one token can stand for, by a `tokenizer.json`; None: there is no bound.

    A bound holds where every character of a text is in some token: for merges of bytes without
    anything that drops or folds text, such as normalizers that strip, unknown tokens, pieces that
    are removed, or added tokens that take the spaces beside them. What is not known to keep
    everything counts as dropping, so no prompt that would fit is ever called too long.
    """
    model, added = tokenizer["model"], tokenizer.get("added_tokens") or ()
    composed = _composed(tokenizer.get("normalizer"))
    splitters = _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if model.get("type") != "BPE" or composed is None or not all(map(_keeps, splitters)):
        return None
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None
    vocabulary = model["vocab"]
    has_bytes = any(each["type"] == "ByteLevel" for each in splitters)
    needed = ByteLevel.alphabet() if has_bytes else [f"<0x{i:02X}>" for i in range(256)]
    if not (has_bytes or model.get("byte_fallback")) or not vocabulary.keys() >= set(needed):
        return None
    return composed * max(map(len, (*vocabulary, *(token["content"] for token in added))))


def _flat(part: Json | None, members: str) -> list[Json]:
    """The parts of a sequence, in order; of any other part itself."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [inner for each in part[members] for inner in _flat(each, members)]


def _keeps(splitter: Json) -> bool:
    return splitter["type"] in _KEEPS_ALL and splitter.get("behavior") != "Removed"


def _composed(normalizer: Json | None) -> int | None:
    """How many characters become one at most; None where there is no bound."""
    composed = 1
    for part in _flat(normalizer, "normalizers"):
        if part["type"] in _COMPOSING:
            composed = MAX_COMPOSED
        elif part["type"] == "Replace":
            if len(part["pattern"].get("String", "")) not in range(1, len(part["content"]) + 1):
                return None
        elif part["type"] != "Prepend":
            return None
    return composed
