"""Messages that are built together can be sent together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.wire.build import merge_verdicts, open_messages, split_verdict
from specedge_p2p.wire.columns import unpack_tokens
from specedge_p2p.wire.messages import (
    MAX_VERDICT_TOKENS,
    PROMPT_CHUNK_TOKENS,
    Open,
    Prompt,
    Verdict,
)
from tests.support.links import OPEN, changed, opened, verdict, with_session


@pytest.mark.parametrize("count", [1, PROMPT_CHUNK_TOKENS, PROMPT_CHUNK_TOKENS + 1, 10_000])
def test_a_prompt_is_cut_into_chunks(count: int) -> None:
    token_ids = [index % 1000 for index in range(count)]
    first, *chunks = open_messages(changed(OPEN, resumed=True), token_ids)
    assert first == changed(OPEN, num_tokens=count)
    found: list[int] = []
    for chunk in chunks:
        assert isinstance(chunk, Prompt)
        assert chunk.offset == len(found)
        found += unpack_tokens(chunk.token_ids).tolist()
    assert found == token_ids
    assert len(chunks) == -(-count // PROMPT_CHUNK_TOKENS)


def test_the_built_messages_open_a_session() -> None:
    ends = opened()
    messages = open_messages(OPEN, [1, 2, 3, 4])
    assert ends.answer(*messages) == messages
    assert isinstance(messages[0], Open)
    assert ends.node.session(1).is_ready


@given(
    st.lists(st.lists(st.integers(0, 49), max_size=5), min_size=2, max_size=5),
    st.integers(0, 3),
)
def test_merged_verdicts_say_the_same(parts: list[list[int]], restart: int) -> None:
    verdicts, position = [], 3
    for round_no, part in enumerate(parts, 1):
        verdicts.append(verdict(part, position, round_no=round_no, num_accepted=len(part) // 2))
        position += len(part)
    verdicts[0] = changed(verdicts[0], restart_tree_no=restart)
    verdicts[-1] = changed(verdicts[-1], role="standby")
    merged: Verdict | None = verdicts[0]
    for other in verdicts[1:]:
        assert merged is not None
        merged = merge_verdicts(merged, other)
    assert merged is not None
    assert unpack_tokens(merged.token_ids).tolist() == [token for part in parts for token in part]
    assert merged.num_accepted == sum(len(part) // 2 for part in parts)
    assert (merged.round_no, merged.from_position) == (len(parts), 3)
    assert (merged.role, merged.restart_tree_no) == ("standby", restart)


@pytest.mark.parametrize("second", [verdict([5], 5), verdict([5], 4, session_no=2)])
def test_only_verdicts_in_a_row_are_merged(second: Verdict) -> None:
    with pytest.raises(ValueError, match="follow"):
        merge_verdicts(verdict([4]), second)


def test_law7_bounded_merging() -> None:
    longest = verdict([1] * (MAX_VERDICT_TOKENS - 1))
    fits = merge_verdicts(longest, verdict([1], 3 + MAX_VERDICT_TOKENS - 1))
    assert fits is not None
    assert merge_verdicts(fits, verdict([1], 3 + MAX_VERDICT_TOKENS)) is None


@pytest.mark.parametrize("count", [0, 1, MAX_VERDICT_TOKENS, 2 * MAX_VERDICT_TOKENS + 1])
def test_a_long_verdict_is_split(count: int) -> None:
    whole = verdict([], num_accepted=1, restart_tree_no=2)
    parts = split_verdict(whole, [7] * count)
    assert [part.from_position for part in parts] == [
        3 + offset for offset in range(0, max(count, 1), MAX_VERDICT_TOKENS)
    ]
    assert sum(len(part.token_ids) for part in parts) == 3 * count
    assert [part.num_accepted for part in parts] == [1] + [0] * (len(parts) - 1)
    assert [part.restart_tree_no for part in parts] == [2] + [0] * (len(parts) - 1)


def test_split_verdicts_can_be_sent() -> None:
    ends = with_session()
    parts = split_verdict(verdict([]), [7] * 90)
    assert ends.answer(*parts) == parts
    assert ends.node.committed(1) == 93
