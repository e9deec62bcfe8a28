import numpy as np
import pytest

from specedge_p2p.lm.ports import OutOfCache, Rows
from specedge_p2p.tree.attention import ancestor_masks, pack_masks
from tests.simulator.models import LIAR, LIE, USELESS, TraceDraft, TraceTarget, by_key
from tests.simulator.traces import Trace, TraceBook, demo_book


@pytest.fixture(scope="module")
def book() -> TraceBook:
    return demo_book()


@pytest.fixture(scope="module")
def trace(book: TraceBook) -> Trace:
    return book.at(0.7)[3]


def opened_target(book: TraceBook, trace: Trace, cache_rows: int = 1 << 20) -> TraceTarget:
    target = TraceTarget(by_key(book.at(0.7)), book.vocab_size, "target", cache_rows)
    target.add_sequence(1, trace.sampling, trace.key)
    return target


def causal(trace: Trace, start: int, stop: int, num_outputs: int) -> Rows:
    return Rows(
        1,
        np.array(trace.tokens[start:stop], np.int32),
        np.arange(start, stop, dtype=np.int32),
        None,
        num_outputs,
    )


def tree(tokens: list[int], parents: list[int], depths: list[int], root_position: int) -> Rows:
    """Rows of a tree whose row 0 is the root."""
    return Rows(
        1,
        np.array(tokens, np.int32),
        np.array(depths, np.int32) + np.int32(root_position),
        pack_masks(ancestor_masks(parents), len(parents)),
        len(tokens),
    )


def test_the_target_chooses_the_recorded_tokens_one_by_one(book: TraceBook, trace: Trace) -> None:
    target, length = opened_target(book, trace), trace.prompt_length
    chosen = [int(target.choose([causal(trace, 0, length, 1)])[0][0])]
    chosen += [
        int(target.choose([causal(trace, position, position + 1, 1)])[0][0])
        for position in range(length, length + 20)
    ]
    assert tuple(chosen) == trace.tokens[length : length + 21]
    assert target.num_prefix_rows(1) == length + 20


def test_a_tree_is_judged_on_the_path_and_only_there(book: TraceBook, trace: Trace) -> None:
    target, at = opened_target(book, trace), trace.prompt_length
    target.choose([causal(trace, 0, at, 1)])
    root, right, then = trace.tokens[at : at + 3]
    wrong = (right + 1) % book.vocab_size
    rows = tree([root, right, wrong, then, then], [-1, 0, 0, 1, 2], [0, 1, 1, 2, 2], at)
    chosen = target.choose([rows])[0].tolist()
    assert chosen[0] == right
    assert chosen[1] == then
    assert chosen[3] == trace.tokens[at + 3]
    assert chosen[4] != trace.tokens[at + 3], "the same token below another one is off the path"
    target.compact(1, (0, 1, 3))
    assert (target.num_prefix_rows(1), target.num_tail_rows(1)) == (at + 3, 0)


def test_rows_are_written_all_or_none(book: TraceBook, trace: Trace) -> None:
    target = opened_target(book, trace, cache_rows=trace.prompt_length + 1)
    target.choose([causal(trace, 0, trace.prompt_length, 1)])
    at = trace.prompt_length
    with pytest.raises(OutOfCache):
        target.choose([causal(trace, at, at + 2, 1)])
    assert target.num_free_rows == 1
    assert target.num_prefix_rows(1) == at
    target.drop_sequence(1)
    assert target.num_free_rows == at + 1


def test_a_draft_ranks_what_was_recorded_and_makes_up_the_rest(
    book: TraceBook, trace: Trace
) -> None:
    at, guesses = trace.prompt_length, trace.guesses["small"]
    answers = []
    for name in ("small", "large"):
        draft = TraceDraft(by_key(book.at(0.7)), book.vocab_size, name)
        draft.add_sequence(1, trace.sampling, trace.key)
        first = draft.expand([causal(trace, 0, at, 1)], 8)[0]
        right = trace.tokens[at]
        wrong = (right + 1) % book.vocab_size
        rows = tree([right, wrong, wrong], [-1, -1, 0], [0, 0, 1], at)
        assert (first.token_ids[0] == trace.guesses[name].token_ids[0]).all()
        answers.append(draft.expand([rows], 8)[0])
        assert (answers[-1].token_ids[0] == trace.guesses[name].token_ids[1]).all()
    small, large = answers
    assert (small.log_probs[0] == guesses.log_probs[1]).all()
    for i in (1, 2):
        assert len(set(small.token_ids[i].tolist())) == 8
        assert (small.token_ids[i] == large.token_ids[i]).all(), "made up alike"
        assert any((small.log_probs[i] == row).all() for row in guesses.log_probs)
    assert small.token_ids[1].tolist() != small.token_ids[2].tolist()


def test_what_is_kept_of_a_tail_stays_what_it_was(book: TraceBook, trace: Trace) -> None:
    """A verdict compacts the tail: the rows below keep their place on the path or off it."""
    draft, at = TraceDraft(by_key(book.at(0.7)), book.vocab_size, "small"), trace.prompt_length
    draft.add_sequence(1, trace.sampling, trace.key)
    draft.expand([causal(trace, 0, at, 1)], 8)
    one, two, three = trace.tokens[at : at + 3]
    wrong = (two + 1) % book.vocab_size
    draft.expand([tree([one, two, wrong], [-1, 0, 0], [0, 1, 1], at)], 8)
    draft.compact(1, (0,), (1, 2))  # slots 0 and 1 are now `two` and `wrong`
    visible = np.array([[0b101], [0b1010]], np.uint64)
    below = Rows(1, np.array([three, three], np.int32), np.full(2, at + 2, np.int32), visible, 2)
    children = draft.expand([below], 8)[0]
    recorded = trace.guesses["small"].token_ids[3]
    assert (children.token_ids[0] == recorded).all()
    assert (children.token_ids[1] != recorded).any()


def test_a_useless_draft_is_never_right(book: TraceBook, trace: Trace) -> None:
    draft = TraceDraft(by_key(book.at(0.7)), book.vocab_size, USELESS)
    draft.add_sequence(1, trace.sampling, trace.key)
    children = draft.expand([causal(trace, 0, len(trace.tokens) - 1, 96)], 8)[0]
    new = np.array(trace.tokens[trace.prompt_length :])
    assert (children.token_ids == new[:, None]).any(axis=1).mean() < 0.05
    assert children.log_probs.max() > -0.1


def test_a_liar_is_never_right_and_always_sure(book: TraceBook, trace: Trace) -> None:
    draft = TraceDraft(by_key(book.at(0.7)), book.vocab_size, LIAR)
    draft.add_sequence(1, trace.sampling, trace.key)
    children = draft.expand([causal(trace, 0, len(trace.tokens) - 1, 96)], 8)[0]
    new = np.array(trace.tokens[trace.prompt_length :])
    assert (children.token_ids == new[:, None]).any(axis=1).mean() < 0.05
    assert (children.log_probs == np.float32(LIE)).all()
