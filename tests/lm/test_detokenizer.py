"""Pieces of text join to the whole, and stop strings cut as a search of the whole text would."""

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import decoders, models, normalizers

from specedge_p2p.lm.detokenizer import IncrementalDetokenizer, StopStrings
from specedge_p2p.lm.text import Tokenizer
from specedge_p2p.lm.toy import ToyText

TOKENIZER = Tokenizer.load("demo-target")


def with_byte_fallback() -> HubTokenizer:
    """As Llama 2, Mistral, Phi-3 and Gemma: what is in no vocabulary comes byte by byte."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    vocab = {word: number for number, word in enumerate(words)}
    merges = [("▁", "a")]
    tokenizer = HubTokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


BY_BYTES = with_byte_fallback()


def decode_by_bytes(token_ids: Sequence[int]) -> str:
    return str(BY_BYTES.decode(list(token_ids)))


@given(text=st.text(max_size=40))
@example(text="x = 'héllo 🎉🎉 wörld'\n")
@example(text="a\N{REPLACEMENT CHARACTER}b")
def test_pieces_join_to_the_text(text: str) -> None:
    detokenizer = TOKENIZER.detokenizer()
    pieces = [detokenizer.push([token_id]) for token_id in TOKENIZER.encode(text)]
    assert "".join(pieces) + detokenizer.finish() == TOKENIZER.decode(TOKENIZER.encode(text))


@given(token_ids=st.lists(st.integers(0, 4095), max_size=40), data=st.data())
def test_any_tokens_join_to_their_decoding(token_ids: list[int], data: st.DataObject) -> None:
    """Also for bytes that are no text: what a high temperature yields."""
    detokenizer = TOKENIZER.detokenizer()
    shown, rest = "", token_ids
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown, rest = shown + detokenizer.push(rest[:size]), rest[size:]
        assert TOKENIZER.decode(token_ids).startswith(shown)
    assert shown + detokenizer.finish() == TOKENIZER.decode(token_ids)


@given(prompt=st.text("a b鲑é", max_size=30), text=st.text("a b鲑สé😀ह", max_size=14))
@example(prompt="", text="a鲑鳟鱼a")
@example(prompt="", text="สวัสดี")
@example(prompt="a鲑鳟鱼鲑鳟", text="鱼 a")
def test_runs_of_byte_tokens_join_to_the_text(prompt: str, text: str) -> None:
    """The decoder shows a run that begins in the middle of a character as no text at all."""
    prompt_ids, token_ids = BY_BYTES.encode(prompt).ids, BY_BYTES.encode(text).ids
    whole = decode_by_bytes([*prompt_ids, *token_ids])
    detokenizer = IncrementalDetokenizer(decode_by_bytes, prompt_ids)
    pieces = [detokenizer.push_one(token_id) for token_id in token_ids]
    assert decode_by_bytes(prompt_ids) + "".join(pieces) + detokenizer.finish() == whole


def test_a_space_that_a_decoder_strips_from_a_text_is_kept_behind_a_prompt() -> None:
    token_ids = BY_BYTES.encode("a a").ids
    for prompt_ids, shown in (([], "a a"), (BY_BYTES.encode("b").ids, " a a")):
        detokenizer = IncrementalDetokenizer(decode_by_bytes, prompt_ids)
        assert detokenizer.push(token_ids) == shown


def test_a_prompt_that_ends_within_a_character_is_no_context() -> None:
    """Nor does it cost a look at all of it."""
    looked_at = []

    def decode(token_ids: Sequence[int]) -> str:
        looked_at.append(len(token_ids))
        return decode_by_bytes(token_ids)

    start = BY_BYTES.encode("鲑").ids[:-1]
    detokenizer = IncrementalDetokenizer(decode, [*BY_BYTES.encode("a" * 1000).ids, *start])
    assert detokenizer.push(BY_BYTES.encode("a").ids) == "a"
    assert max(looked_at) <= 64


def test_an_incomplete_character_is_held_back() -> None:
    detokenizer = TOKENIZER.detokenizer()
    *start, last = TOKENIZER.encode("🎉")
    assert len(start) > 0
    assert detokenizer.push(start) == ""
    assert detokenizer.push([last]) == "🎉"
    assert detokenizer.finish() == ""


def test_special_tokens_are_not_shown() -> None:
    for codec in (TOKENIZER, ToyText()):
        ids = codec.encode("abc")
        assert codec.detokenizer().push([0, *ids, 1]) == "abc"


@given(
    text=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", max_size=5), max_size=3),
    data=st.data(),
)
@example(text="xabcab", stops=["abcd", "bc"], data=None)
def test_stop_strings_equal_a_search_of_the_whole(
    text: str, stops: list[str], data: st.DataObject | None
) -> None:
    found = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    expected = text[: min(found)] if found else text
    cutter = StopStrings(stops)
    released, rest, is_hit = "", text, False
    while rest and not is_hit:
        size = data.draw(st.integers(1, len(rest))) if data else 1
        piece, is_hit = cutter.feed(rest[:size])
        released, rest = released + piece, rest[size:]
        assert expected.startswith(released)
        holding = max((len(stop) for stop in stops), default=0)
        seen = len(text) - len(rest)
        assert is_hit or seen - len(released) <= 2 * holding  # what cannot begin one is released
    piece, is_hit = cutter.finish()
    assert released + piece == expected
    assert is_hit == bool(found)
    assert cutter.feed("abc") == ("", True) if is_hit else True
