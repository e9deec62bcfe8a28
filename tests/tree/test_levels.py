import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.binding import BindLimits, BoundRows, SourceTree, bind
from specedge_p2p.tree.levels import USEFUL_SHARE, Expansions, expansions, pays, useful_share
from specedge_p2p.tree.ngram import NgramGuess
from specedge_p2p.tree.received_tree import ReceivedTree
from tests.support.trees import columns


def rows_with(probs: list[float], covered: list[float]) -> BoundRows:
    """A chain; only the two columns matter here."""
    num = len(probs)
    return BoundRows(
        token_ids=[0] * num,
        parents=list(range(-1, num - 1)),
        depths=list(range(num)),
        probs=probs,
        sources=[0] * num,
        seconds=[0] * num,
        is_ngram=[False] * num,
        covered=covered,
        is_own=[False] * num,
    )


def test_the_rows_with_the_most_uncovered_mass_are_expanded() -> None:
    bound = rows_with([1.0, 0.75, 0.5, 0.5, 0.25], [0.75, 0.25, 0.0, 0.5, 0.0])
    assert expansions(bound, frozenset(), 2) == Expansions((1, 2), USEFUL_SHARE * 1.0)
    assert expansions(bound, {1}, 2) == Expansions((2, 0), USEFUL_SHARE * 0.75)
    assert expansions(bound, frozenset(), 9).rows == (1, 2, 0, 4)  # nothing is left below row 3
    assert expansions(bound, frozenset(), 0) == Expansions((), 0.0)


def test_a_root_that_nobody_guessed_below_is_expanded() -> None:
    alone = bind(9, [], NgramGuess(), 0.0, BindLimits(0.1, 8, 8))
    assert expansions(alone, frozenset(), 4) == Expansions((0,), USEFUL_SHARE)
    at_the_end = bind(9, [], NgramGuess(), 0.0, BindLimits(0.1, 8, 0))
    assert expansions(at_the_end, frozenset(), 4) == Expansions((), 0.0)


def test_what_nodes_covered_is_not_drafted_again() -> None:
    tree = ReceivedTree(1, 4, [], 9)
    tree.extend(1, columns([(0, 1, math.log(0.75)), (0, 2, math.log(0.2)), (1, 3, math.log(0.9))]))
    bound = bind(9, [SourceTree(3, tree)], NgramGuess(), 0.0, BindLimits(0.5, 8, 8))
    found = expansions(bound, frozenset(), 4)
    assert found.rows == (2, 1, 0)  # below the third vertex nothing is known
    assert math.isclose(found.mass, USEFUL_SHARE * (0.675 + 0.075 + 0.05), rel_tol=1e-6)


def test_a_level_brings_less_where_nodes_keep_their_lead() -> None:
    assert useful_share(0.0) == USEFUL_SHARE
    assert USEFUL_SHARE > useful_share(0.1) > useful_share(0.25) == useful_share(1.0) > 0.5


def test_a_level_pays_when_it_beats_what_its_time_is_worth() -> None:
    # 300 tokens per second: 5 ms of level and 1 ms of rows cost 1.8 tokens
    assert pays(1.81, 2, 0.004, 0.001, 0.0005, 300.0)
    assert not pays(1.79, 2, 0.004, 0.001, 0.0005, 300.0)
    assert not pays(1.81, 4, 0.004, 0.001, 0.0005, 300.0)
    assert not pays(1.0, 0, 0.0, 0.0, 0.0, 0.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12), st.data())
def test_expansions_equal_brute_force(
    pairs: list[tuple[float, float]], data: st.DataObject
) -> None:
    bound = rows_with([p for p, _ in pairs], [p * share for p, share in pairs])
    done = data.draw(st.sets(st.integers(0, len(pairs) - 1)))
    width = data.draw(st.integers(0, 6))
    found = expansions(bound, done, width)
    mass = dict(enumerate(bound.uncovered()))
    others = [mass[row] for row in mass if row not in done and row not in found.rows]
    assert len(found.rows) <= width
    assert not done & set(found.rows)
    assert all(mass[row] > 0 for row in found.rows)
    if len(found.rows) < width:
        assert all(rest <= 0 for rest in others)
    else:
        least = min((mass[row] for row in found.rows), default=math.inf)
        assert all(rest <= least for rest in others)
    assert found.mass == pytest.approx(USEFUL_SHARE * sum(mass[row] for row in found.rows))
