"""Committed tokens to text that is final."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.target_text import StoppedText


class Bytes:
    """One token per byte, as the worst tokenizers have it."""

    vocab_size = 256

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        return list(text.encode())

    def encode_chat(
        self, messages: Sequence[dict[str, str]], max_tokens: int | None = None
    ) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")

    def fingerprint(self) -> bytes:
        return b"bytes"


def shown(text: str, stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    """What each token made visible, the end included, and whether a stop string came."""
    stream = StoppedText(Bytes(), stop)
    parts = []
    for token in Bytes().encode(text):
        part, is_stopped = stream.push(token)
        parts.append(part)
        if is_stopped:
            return parts, True
    last, is_stopped = stream.finish()
    return [*parts, last], is_stopped


def test_a_character_of_many_tokens_is_shown_when_it_is_whole() -> None:
    parts, _ = shown("aé")
    assert parts[0] == "a"
    assert parts[1] == ""
    assert "".join(parts) == "aé"


@pytest.mark.parametrize(
    ("text", "stop", "want"),
    [
        ("one END two", ["END"], "one "),
        ("one END", ["END"], "one "),
        ("one EN", ["END"], "one EN"),
        ("aab", ["ab"], "a"),
        ("xyz", ["z", "yz"], "x"),
        ("grüße, Öl", ["Ö"], "grüße, "),
        ("xabc", ["abcd", "bc"], "xa"),
    ],
)
def test_stop_strings(text: str, stop: list[str], want: str) -> None:
    parts, is_stopped = shown(text, stop)
    assert "".join(parts) == want
    assert is_stopped == any(s in text for s in stop)


@given(text=st.text("abé🙂", max_size=20), stop=st.text("abé", min_size=1, max_size=3))
def test_the_same_as_cutting_the_whole_text(text: str, stop: str) -> None:
    parts, is_stopped = shown(text, [stop])
    assert "".join(parts) == text.split(stop)[0]
    assert is_stopped == (stop in text)


@given(text=st.text("abé🙂", max_size=20), stop=st.text("ab", min_size=1, max_size=3))
def test_what_was_shown_is_never_taken_back(text: str, stop: str) -> None:
    parts, _ = shown(text, [stop])
    so_far = ""
    for part in parts:
        so_far += part
        assert text.startswith(so_far)
        assert stop not in so_far
