"""The text side of the target model: prompts to tokens, committed tokens to text."""

from collections.abc import Sequence
from typing import Protocol

from specedge_p2p.lm.detokenizer import IncrementalDetokenizer, StopStrings


class TextCodec(Protocol):
    """A tokenizer, real or toy."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Raises TextTooLong, at once, for a text that must be more than `max_tokens`."""
        ...

    def encode_chat(
        self, messages: Sequence[dict[str, str]], max_tokens: int | None = None
    ) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def fingerprint(self) -> bytes: ...


class StoppedText:
    """The text of one session: final characters only, cut at the first stop string."""

    def __init__(
        self, codec: TextCodec, stop: Sequence[str], prompt_ids: Sequence[int] = ()
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(codec.decode, prompt_ids)
        self._stop_strings = StopStrings(stop)

    def push(self, token_id: int) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string was completed."""
        return self._stop_strings.feed(self._detokenizer.push_one(token_id))

    def finish(self) -> tuple[str, bool]:
        """What was held back and is part of the answer after all, and whether a stop string cut it.

        Of two that overlap the one that begins first may be found only here.
        """
        shown, is_stopped = self._stop_strings.feed(self._detokenizer.finish())
        if is_stopped:
            return shown, True
        rest, is_stopped = self._stop_strings.finish()
        return shown + rest, is_stopped
