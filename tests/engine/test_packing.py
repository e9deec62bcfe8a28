"""Rows of a forward, and what becomes of its choices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.messages import TokenSource
from coordinator.engine.packing import (
    Ending,
    cut,
    judge,
    judge_first,
    plain,
    prefill_rows,
    tree_rows,
)
from specedge_p2p.tree.binding import BoundRows

EOS = 1
OPEN_END = Ending(max_position=1000, eos_token_ids=frozenset({EOS}))


def bound(tokens: list[int], parents: list[int]) -> BoundRows:
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    count = len(tokens)
    return BoundRows(
        token_ids=tokens,
        parents=parents,
        depths=depths,
        probs=[1.0] * count,
        sources=[0, *range(11, 10 + count)],
        seconds=[0] * count,
        is_ngram=[False, True, *[False] * count][:count],
        covered=[0.0] * count,
        is_own=[False] * count,
    )


TREE = bound([5, 6, 7, 8, 9], [-1, 0, 0, 1, 3])  # 5 -> 6 -> 8 -> 9, 5 -> 7


def test_tree_rows_go_to_the_tail_with_their_ancestors() -> None:
    rows = tree_rows(3, 40, TREE)
    assert rows.sequence == 3
    assert rows.token_ids.tolist() == [5, 6, 7, 8, 9]
    assert rows.positions.tolist() == [40, 41, 41, 42, 43]
    assert rows.positions.dtype == np.int32
    assert rows.visible is not None
    assert rows.visible[:, 0].tolist() == [0b1, 0b11, 0b101, 0b1011, 0b11011]
    assert rows.num_outputs == 5


def test_a_root_alone_is_a_causal_row() -> None:
    rows = tree_rows(3, 40, plain(TREE))
    assert (rows.token_ids.tolist(), rows.positions.tolist()) == ([5], [40])
    assert rows.visible is None
    assert rows.num_outputs == 1


@pytest.mark.parametrize("is_last", [False, True])
def test_a_chunk_wants_a_choice_only_at_the_end_of_the_prompt(is_last: bool) -> None:
    rows = prefill_rows(3, [5, 6, 7], 10, is_last)
    assert rows.token_ids.tolist() == [5, 6, 7]
    assert rows.positions.tolist() == [10, 11, 12]
    assert rows.visible is None
    assert rows.num_outputs == int(is_last)


def test_a_path_is_accepted_with_its_sources() -> None:
    outcome = judge(TREE, np.array([6, 8, 0, 4, 0], np.int32), 41, OPEN_END)
    assert outcome.token_ids == (6, 8, 4)
    assert outcome.sources == (TokenSource(11, 0, True), TokenSource(13), TokenSource())
    assert outcome.commit_slots == (0, 1, 3)
    assert outcome.finish == ""


def test_nothing_accepted_is_the_targets_own_token() -> None:
    outcome = judge(TREE, np.array([4, 8, 0, 4, 0], np.int32), 41, OPEN_END)
    assert (outcome.token_ids, outcome.sources) == ((4,), (TokenSource(),))
    assert outcome.commit_slots == (0,)


def test_tokens_are_cut_where_no_position_is_left() -> None:
    choices = np.array([6, 8, 0, 9, 2], np.int32)
    outcome = judge(TREE, choices, 41, Ending(43, frozenset({EOS})))
    assert (outcome.token_ids, outcome.finish) == ((6, 8), "length")
    assert len(outcome.sources) == 2


def test_the_first_token_may_end_a_session() -> None:
    assert judge_first(7, 41, OPEN_END).finish == ""
    assert judge_first(EOS, 41, OPEN_END).finish == "stop"
    first = judge_first(7, 41, Ending(42, frozenset()))
    assert (first.token_ids, first.finish) == ((7,), "length")


@given(
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    num_committed=st.integers(0, 20),
    room=st.integers(1, 10),
)
def test_a_cut_keeps_what_stands_before_the_end(
    tokens: list[int], num_committed: int, room: int
) -> None:
    num_kept, finish = cut(tokens, num_committed, Ending(num_committed + room, frozenset({EOS})))
    kept = tokens[:num_kept]
    assert 1 <= num_kept <= room
    assert EOS not in kept[:-1]
    if kept[-1] == EOS:
        assert finish == "stop"
    elif num_kept == room:
        assert finish == "length"
    else:
        assert (finish, kept) == ("", tokens)
