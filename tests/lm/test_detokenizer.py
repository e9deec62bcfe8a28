"""Pieces of text join to the whole, and stop strings cut as a search of the whole text would."""

from hypothesis import example, given
from hypothesis import strategies as st

from specedge_p2p.lm.detokenizer import StopStrings
from specedge_p2p.lm.text import Tokenizer
from specedge_p2p.lm.toy import ToyText

TOKENIZER = Tokenizer.load("demo-target")


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
