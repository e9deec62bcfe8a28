"""From token ids to text that may be shown; incomplete characters and stop strings wait."""

from collections import deque
from collections.abc import Callable, Sequence

_CONTEXT_TOKENS = 4
"""At least so many shown tokens are decoded again with the new ones: a decoder may treat the first
token of a text differently (a leading space, a joined word)."""

_MAX_PROMPT_TOKENS = 64
"""As many of a prompt are looked at, to find a place where the text may be cut."""

_MAX_PENDING_TOKENS = 64
"""Tokens held back at most while the text ends in an incomplete character: longer than any
character or run of byte tokens that a decoder merges."""


class IncrementalDetokenizer:
    """Turns a stream of tokens into a stream of text whose pieces join to the whole text.

    Args:
        decode: token ids to text, special tokens skipped.
        prompt_ids: what the tokens go on from; it is not shown.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._context = deque([self._end_of(prompt_ids)])
        """Groups of tokens, each the end of a character: a decoder that sees a run of byte tokens
        from the middle of a character on makes nothing of all the run."""
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that became final with these tokens."""
        return "".join([self.push_one(token_id) for token_id in token_ids])

    def finish(self) -> str:
        """What was held back, with the replacement sign where a character stayed incomplete."""
        text = self._new_text()
        self._settle()
        return text

    def push_one(self, token_id: int) -> str:
        """Text that became final with this token."""
        self._pending.append(token_id)
        text = self._new_text()
        is_open = text.endswith("\N{REPLACEMENT CHARACTER}") or not text
        if is_open and len(self._pending) < _MAX_PENDING_TOKENS:
            return ""
        self._settle()
        return text

    def _new_text(self) -> str:
        context = [token_id for group in self._context for token_id in group]
        return self._decode([*context, *self._pending])[len(self._decode(context)) :]

    def _settle(self) -> None:
        self._context.append(self._pending)
        self._pending = []
        num_tokens = sum(map(len, self._context))
        while num_tokens - len(self._context[0]) >= _CONTEXT_TOKENS:
            num_tokens -= len(self._context.popleft())

    def _end_of(self, prompt_ids: Sequence[int]) -> list[int]:
        """The last tokens, from the beginning of a character on."""
        num_tokens = _CONTEXT_TOKENS
        while num_tokens <= _MAX_PROMPT_TOKENS:
            tokens = list(prompt_ids[-num_tokens:])
            text = self._decode(tokens)  # empty where all are special
            if text and "\N{REPLACEMENT CHARACTER}" not in (text[0], text[-1]):
                return tokens
            num_tokens *= 2
        return []


class StopStrings:
    """Cuts a stream of text at the first stop string.

    "First" is where the occurrence begins; of two that begin together it makes no difference. Text
    that may be the beginning of a stop string is held back until it is known.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = tuple(stop for stop in stop_strings if stop)
        self._held = ""
        self._hit = False

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may be released now, and whether a stop string was met.

        After a hit nothing is released any more.
        """
        if not self._stop_strings:
            return text, False
        if self._hit:
            return "", True
        self._held += text
        cut = self._first_match()
        # An earlier beginning of a longer stop string may still become the first match.
        safe = self._first_possible_beginning()
        if cut is not None and cut <= safe:
            self._hit = True
            return self._release(cut), True
        return self._release(safe), False

    def finish(self) -> tuple[str, bool]:
        """The text that was held back, cut at a stop string if one is complete in it."""
        cut = None if self._hit else self._first_match()
        self._hit = self._hit or cut is not None
        return self._release(len(self._held) if cut is None else cut), self._hit

    def _first_match(self) -> int | None:
        found = [self._held.find(stop) for stop in self._stop_strings]
        return min((place for place in found if place >= 0), default=None)

    def _first_possible_beginning(self) -> int:
        """Where the earliest end of the text begins that a stop string begins with."""
        longest = max((len(stop) for stop in self._stop_strings), default=1)
        for start in range(max(0, len(self._held) - longest + 1), len(self._held)):
            rest = self._held[start:]
            if any(stop.startswith(rest) for stop in self._stop_strings):
                return start
        return len(self._held)

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], "" if self._hit else self._held[length:]
        return text
