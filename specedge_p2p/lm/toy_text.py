"""Text for the toy model: every token but two is one printable character."""

import string
from collections.abc import Sequence
from hashlib import blake2b

from specedge_p2p.lm.detokenizer import IncrementalDetokenizer
from specedge_p2p.lm.text_bounds import refuse_too_long

BOS, EOS = 0, 1
_NUM_SPECIAL = 2
_CHARACTERS = string.ascii_lowercase + " .,\n" + string.ascii_uppercase + string.digits


class ToyText:
    """The `TextCodec` of a `ToyModel` with the same vocabulary size."""

    def __init__(self, vocab_size: int = 32) -> None:
        num_more = max(0, vocab_size - _NUM_SPECIAL - len(_CHARACTERS))
        # From U+0100 on come letters; no surrogates for any vocabulary that a test would take.
        more = "".join(chr(0x100 + i) for i in range(num_more))
        self._characters = (_CHARACTERS + more)[: vocab_size - _NUM_SPECIAL]
        self._ids = {c: i + _NUM_SPECIAL for i, c in enumerate(self._characters)}
        self._vocab_size = vocab_size

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """The beginning token and one token per character; a character without one becomes 'a'."""
        refuse_too_long(text, 1, max_tokens)
        return [BOS, *(self._ids.get(character, _NUM_SPECIAL) for character in text)]

    def encode_chat(
        self, messages: Sequence[dict[str, str]], max_tokens: int | None = None
    ) -> list[int]:
        return self.encode("".join(each["content"] + "\n" for each in messages), max_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self._characters[i - _NUM_SPECIAL] for i in token_ids if i >= _NUM_SPECIAL)

    def detokenizer(self) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(self.decode)

    def fingerprint(self) -> bytes:
        return blake2b(f"toy text {self._vocab_size}".encode(), digest_size=16).digest()
