"""Lock-step drafting over the toy model: one tree for every verdict."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.drafter import Drafter, DraftRequest
from specedge_p2p.lm.toy import ToyModel, toy_decode
from specedge_p2p.wire.messages import GrowthWishes
from tests.node.test_drafter import DRAFT, GREEDY, KEY, PROMPT, TARGET, Mirror


def wishes(levels: int, vertices: int = 0, *, is_proactive: bool = True) -> GrowthWishes:
    return GrowthWishes(
        lockstep_levels=levels, lockstep_vertices=vertices, is_proactive=is_proactive
    )


def opened(wished: GrowthWishes, model: ToyModel | None = None, last: int = 4096) -> Drafter:
    drafter = Drafter(model or ToyModel(DRAFT))
    drafter.open(1, DraftRequest(PROMPT, GREEDY, KEY, last, 32, wished))
    return drafter


def levels_to_proposal(drafter: Drafter, most: int = 50) -> int:
    for num_levels in range(most):
        if drafter.gains(1, 256) is not None:
            return num_levels
        drafter.level()
    raise AssertionError("nothing is proposed")


def test_one_proposal_after_its_levels_and_none_before_the_verdict() -> None:
    drafter = opened(wishes(4, 16))
    for _ in range(4):
        assert drafter.gains(1, 256) is None
        drafter.level()
    gain = drafter.gains(1, 256)
    assert gain is not None
    assert (gain.tree_no, gain.first_index, gain.base_position) == (1, 1, len(PROMPT))
    assert len(gain.candidates) == 16
    for _ in range(5):
        assert drafter.level().num_rows
        assert drafter.gains(1, 256) is None


def test_without_proactive_growth_the_draft_model_rests() -> None:
    drafter = opened(wishes(3, is_proactive=False))
    assert levels_to_proposal(drafter) == 3
    assert drafter.level().num_rows == 0
    drafter.commit(1, [30])
    assert drafter.level().num_rows


def test_growth_below_the_verdict_counts() -> None:
    truth = toy_decode(TARGET, PROMPT, GREEDY, KEY, 8)
    drafter = opened(wishes(4, 16), ToyModel(TARGET))
    levels_to_proposal(drafter)
    for _ in range(4):
        drafter.level()
    assert drafter.commit(1, truth[:2])
    assert levels_to_proposal(drafter) == 0
    drafter.commit(1, [31, 30])
    assert levels_to_proposal(drafter) == 4


def test_every_round_is_a_tree_that_begins_at_the_last_token() -> None:
    truth = toy_decode(TARGET, PROMPT, GREEDY, KEY, 40)
    drafter, mirror = opened(wishes(3, 12), ToyModel(TARGET)), Mirror()
    done = 0
    while done < 30:
        levels_to_proposal(drafter)
        drafter.restart(1)  # the engine lost it: the same again, in the next tree
        gain = drafter.gains(1, 256)
        assert gain is not None
        assert gain.base_position == len(PROMPT) + done
        mirror.tree_no = gain.tree_no - 1
        mirror.take(gain)
        tokens = [*PROMPT, *truth]
        num = mirror.accepted(tokens, len(PROMPT) + done, truth[done:])
        assert num >= 2
        drafter.commit(1, truth[done : done + num + 1])
        done += num + 1


@pytest.mark.parametrize("num_left", [1, 2])
def test_the_last_positions_are_proposed_though_nothing_more_can_grow(num_left: int) -> None:
    drafter = opened(wishes(6), last=len(PROMPT) + num_left)
    assert levels_to_proposal(drafter, 6) == num_left + 1  # one level finds that nothing grows


def test_a_resumed_session_proposes_anew_and_other_wishes_are_heard() -> None:
    drafter = opened(wishes(2, 8))
    levels_to_proposal(drafter)
    drafter.resume(1, wishes(3, 8))
    assert levels_to_proposal(drafter) <= 1
    drafter.tune(1, wishes(1, 4))
    drafter.commit(1, [30])
    assert levels_to_proposal(drafter) == 1
    drafter.tune(1, GrowthWishes())
    drafter.level()
    assert drafter.gains(1, 256) is not None
    drafter.tune(1, wishes(2, 4))
    gain = drafter.gains(1, 256)
    assert gain is None or gain.first_index == 1


Events = Sequence[tuple[str, int]]
events = st.lists(
    st.tuples(
        st.sampled_from(["level", "level", "gain", "hit", "miss", "empty", "restart", "resume"]),
        st.integers(0, 4),
    ),
    max_size=50,
)


@given(events, st.integers(1, 5), st.integers(0, 20), st.booleans(), st.integers(20, 300))
@settings(deadline=None)
def test_every_verdict_is_answered_with_one_tree(
    script: Events, levels: int, vertices: int, is_proactive: bool, cache_rows: int
) -> None:
    model = ToyModel(DRAFT, cache_rows=cache_rows)
    wished = wishes(levels, vertices, is_proactive=is_proactive)
    drafter, num_due = opened(wished, model), 1
    tokens = list(PROMPT)
    for kind, number in [*script, *([("level", 0), ("gain", 256)] * 8)]:
        if 1 not in drafter.session_nos:
            return  # its cache was too small for the committed tokens
        if kind == "level":
            drafter.level()
        elif kind == "gain":
            gain = drafter.gains(1, number or 256)
            if gain is not None:
                assert num_due == 1
                assert (gain.first_index, gain.base_position) == (1, len(tokens))
                num_due = 0
        elif kind in ("hit", "miss"):
            new = toy_decode(DRAFT, tokens, GREEDY, KEY, number + 1) if kind == "hit" else [30, 31]
            drafter.commit(1, new)
            tokens += new
            num_due = 1
        elif kind == "empty":
            drafter.commit(1, [])
        elif kind == "restart":
            drafter.restart(1)
            num_due = 1
        else:
            drafter.resume(1, wished)
            num_due = 1
    assert num_due == 0 or 1 not in drafter.session_nos
