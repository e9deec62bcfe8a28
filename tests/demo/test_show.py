"""The demo's pictures fit the terminal that they are drawn on."""

from io import StringIO

import pytest
from rich.console import Console

from specedge_p2p.demo.client import PROMPTS, Batch, Generation
from specedge_p2p.demo.show import Palette
from specedge_p2p.lm.text import Tokenizer

NUM_LINES = 60


def long_batch(tokenizer: Tokenizer) -> Batch:
    """Four answers of many lines, each with an end of its own."""
    generations = []
    for number, prompt in enumerate(PROMPTS):
        lines = [f"    line_{i} = {number}\n" for i in range(NUM_LINES)]
        token_ids = tokenizer.encode("".join([*lines, f"    end_of_{number}"]))
        guessed_by = ["", "ngram", "12D3KooWfirst", "12D3KooWsecond"] * len(token_ids)
        generation = Generation(prompt, token_ids=list(token_ids))
        generation.guessed_by = guessed_by[: len(token_ids)]
        generations.append(generation)
    return Batch(generations)


def drawn(width: int, height: int) -> list[str]:
    console = Console(file=StringIO(), force_terminal=True, width=width, height=height)
    palette = Palette(Tokenizer.load("demo-target"))
    picture = palette.live_batch(long_batch(Tokenizer.load("demo-target")), console)
    lines = console.render_lines(picture)
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


@pytest.mark.parametrize(("width", "height"), [(80, 25), (80, 16), (200, 50), (130, 15)])
def test_the_live_picture_is_lower_than_the_screen_and_shows_every_end(
    width: int, height: int
) -> None:
    lines = drawn(width, height)
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for number in range(len(PROMPTS)):
        assert f"end_of_{number}" in text
    assert "line_0 =" not in text
    assert "target" in lines[-1]


def test_a_screen_too_low_for_four_answers_shows_how_many_tokens_there_are() -> None:
    (line,) = drawn(80, 8)
    assert line.endswith(" tokens")
