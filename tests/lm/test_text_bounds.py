"""A prompt is called too long only when no tokens could hold it."""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from specedge_p2p.demo.models import demo_path
from specedge_p2p.lm import text as lm_text
from specedge_p2p.lm.text_bounds import MAX_COMPOSED, TextTooLong, longest_token

SPACE = "▁"
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
FALLBACK = [f"<0x{i:02X}>" for i in range(256)]


def vocabulary(*words: str) -> dict[str, int]:
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def byte_level() -> Tokenizer:
    words = vocabulary(*ALPHABET, "aa", "aaaa", "Ġaaaa")
    merges = [("a", "a"), ("aa", "aa"), ("Ġ", "aaaa")]
    tokenizer = Tokenizer(models.BPE(words, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def fallback() -> Tokenizer:
    words = vocabulary("<unk>", *FALLBACK, SPACE, "a", "aa", "aaaa")
    model = models.BPE(
        words, [("a", "a"), ("aa", "aa")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.ByteFallback()
    return tokenizer


def content(tokenizer: Tokenizer) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(tokenizer.to_str())
    return parsed


def composing() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [(byte_level(), 5), (fallback(), 6), (composing(), 5 * MAX_COMPOSED)],
)
def test_the_longest_token(tokenizer: Tokenizer, expected: int) -> None:
    assert longest_token(content(tokenizer)) == expected
    tokenizer.add_tokens(["<|a long one|>"])
    assert longest_token(content(tokenizer)) == expected // 5 * 14 or expected == 6


def test_an_old_file_without_optional_fields() -> None:
    parsed = {name: content(byte_level())[name] for name in ("model", "pre_tokenizer")}
    assert longest_token(parsed) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"model": content(byte_level())["model"] | {"type": "WordPiece"}},
        {"model": content(byte_level())["model"] | {"vocab": vocabulary("a", "b")}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed"},
                    {"type": "ByteLevel"},
                ],
            }
        },
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "  "}, "content": " "}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": SPACE * 9}},
        {"added_tokens": [{"content": "<mask>", "lstrip": True, "rstrip": False}]},
        {"added_tokens": [{"content": "<mask>", "lstrip": False, "rstrip": True}]},
    ],
)
def test_what_may_drop_or_fold_text_has_no_bound(change: Mapping[str, object]) -> None:
    assert longest_token({**content(byte_level()), **change}) is None


@given(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("aaa \n"), max_size=200),
    st.sampled_from([byte_level(), fallback(), composing()]),
)
def test_no_text_is_shorter_in_tokens_than_the_bound_says(text: str, tokenizer: Tokenizer) -> None:
    longest = longest_token(content(tokenizer))
    assert longest is not None
    assert len(text) <= longest * len(tokenizer.encode(text).ids)


def test_unicode_composes_no_more_than_is_said() -> None:
    texts = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert max(len(unicodedata.normalize("NFD", text)) for text in texts) == MAX_COMPOSED
    assert min(len(unicodedata.normalize("NFKD", text)) for text in texts) == 1


def test_the_demo_pair_refuses_without_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = lm_text.Tokenizer(demo_path("demo-draft"))
    longest = max(
        map(
            len,
            json.loads((demo_path("demo-draft") / "tokenizer.json").read_text())["model"]["vocab"],
        )
    )
    assert tokenizer.encode("x" * longest * 8, max_tokens=8)
    assert tokenizer.encode("x" * longest * 9)
    monkeypatch.setattr(tokenizer, "_fast", None)  # what is refused never gets there
    with pytest.raises(TextTooLong, match="characters are more than 8 tokens"):
        tokenizer.encode("x" * (longest * 8 + 1), max_tokens=8)
    message = {"role": "user", "content": "x" * longest * 9}
    with pytest.raises(TextTooLong):
        tokenizer.encode_chat([message], max_tokens=8)
