from pathlib import Path

import numpy as np
import pytest

from tests.simulator.traces import BRANCH_WIDTH, DATA, TraceBook, demo_book, load_book, save_book


@pytest.fixture(scope="module")
def book() -> TraceBook:
    return demo_book()


def test_the_recording_is_small_and_complete(book: TraceBook) -> None:
    assert (DATA / "demo-pair.npz").stat().st_size < 1_000_000
    assert book.temperatures == (0.0, 0.7, 1.0)
    assert book.draft_names == ("small", "unshared", "large", "target")
    for temperature in book.temperatures:
        traces = book.at(temperature)
        assert len(traces) == 32
        assert all(64 <= trace.prompt_length <= 128 and trace.num_new == 96 for trace in traces)
    assert len({(t.temperature, t.key) for t in book.traces}) == len(book.traces)
    with pytest.raises(ValueError, match="was not recorded"):
        book.at(0.5)


def test_children_are_different_tokens_in_falling_order_with_a_sum_below_one(
    book: TraceBook,
) -> None:
    for trace in book.traces:
        for guesses in trace.guesses.values():
            assert guesses.token_ids.shape == (96, BRANCH_WIDTH)
            assert all(len(set(row)) == BRANCH_WIDTH for row in guesses.token_ids.tolist())
            assert (np.diff(guesses.log_probs, axis=1) <= 0).all()
            assert (np.exp(guesses.log_probs).sum(axis=1) < 1.15).all()  # rounded to 1/16 nat
            assert (guesses.token_ids < book.vocab_size).all()


def test_first_guesses_are_as_good_as_they_should_be(book: TraceBook) -> None:
    rates = {
        (name, t): book.first_guess_rate(name, t)
        for name in book.draft_names
        for t in book.temperatures
    }
    assert 0.74 < rates["small", 0.0] < 0.82
    assert 0.64 < rates["small", 0.7] < 0.74
    assert rates["small", 0.0] == rates["unshared", 0.0], "there is no noise at temperature 0"
    assert rates["unshared", 0.7] < rates["small", 0.7] < rates["large", 0.7]
    assert rates["unshared", 1.0] < rates["small", 1.0] < rates["large", 1.0]
    for t in book.temperatures:
        assert rates["target", t] > 0.995, "the target knows what it will choose"


def test_a_book_survives_the_file(book: TraceBook, tmp_path: Path) -> None:
    some = TraceBook("some", 70_000, book.traces[40:43])
    save_book(some, tmp_path / "some.npz")
    again = load_book(tmp_path / "some.npz")
    assert (again.name, again.vocab_size) == ("some", 70_000)
    for before, after in zip(some.traces, again.traces, strict=True):
        assert (before.tokens, before.key) == (after.tokens, after.key)
        for name, guesses in before.guesses.items():
            assert (after.guesses[name].token_ids == guesses.token_ids).all()
            assert (after.guesses[name].log_probs == guesses.log_probs).all()
