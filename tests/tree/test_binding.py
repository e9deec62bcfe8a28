import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.binding import BindLimits, BoundRows, SourceTree, bind
from specedge_p2p.tree.draft_tree import DraftTree
from specedge_p2p.tree.ngram import NgramGuess
from specedge_p2p.tree.received_tree import ReceivedTree
from tests.support.plain_binding import plain_bind
from tests.support.trees import columns, path, path_log_prob, received, tokens_to

ALL = BindLimits(row_price=0.0, max_rows=100, max_depth=100)
NO_GUESS = NgramGuess()
HALF = math.log(0.5)
QUARTER = math.log(0.25)


def shape(rows: BoundRows) -> list[tuple[int, int, float]]:
    """(token, parent row, probability) of the rows below the root."""
    columns = zip(rows.token_ids, rows.parents, rows.probs, strict=True)
    return [(token, parent, round(prob, 4)) for token, parent, prob in columns][1:]


def test_without_sources_the_root_stands_alone() -> None:
    rows = bind(9, [], NO_GUESS, 0.5, ALL)
    assert len(rows) == 1
    assert rows.token_ids == [9]
    assert rows.parents == [-1]
    assert rows.depths == [0]
    assert rows.probs == [1.0]
    assert rows.sources == [0]
    assert not any(rows.is_ngram)


def test_rows_are_the_most_probable_vertices_parents_first() -> None:
    tree = received((1, [(0, 1, HALF), (0, 2, QUARTER), (1, 3, HALF), (2, 4, HALF), (3, 5, HALF)]))
    rows = bind(9, [SourceTree(3, tree)], NO_GUESS, 0.5, BindLimits(0.12, 4, 9))
    assert shape(rows) == [(1, 0, 0.5), (2, 0, 0.25), (3, 1, 0.25), (4, 2, 0.125)]
    assert rows.sources == [0, 3, 3, 3, 3]
    assert rows.depths == [0, 1, 1, 2, 2]


def test_probabilities_are_summed_from_the_current_root_and_scaled() -> None:
    tree = received((1, [(0, 1, math.log(0.01)), (1, 2, HALF), (2, 3, HALF)]))
    tree.commit([1])
    rows = bind(1, [SourceTree(3, tree, 0.8)], NO_GUESS, 0.5, ALL)
    assert shape(rows) == [(2, 0, 0.4), (3, 1, 0.2)]
    rows = bind(1, [SourceTree(3, tree, 1.3)], NO_GUESS, 0.5, ALL)
    assert shape(rows) == [(2, 0, 0.65), (3, 1, 0.325)]


def test_a_claim_above_certainty_is_held_at_the_parents_probability() -> None:
    tree = received((1, [(0, 1, 0.0), (1, 2, 0.0)]))
    rows = bind(9, [SourceTree(3, tree, 1.3)], NO_GUESS, 0.5, ALL)
    assert shape(rows) == [(1, 0, 1.0), (2, 1, 1.0)]


def test_a_source_that_fell_short_brings_nothing() -> None:
    tree = received((1, [(0, 1, HALF)]))
    tree.commit([7])
    assert len(bind(7, [SourceTree(3, tree)], NO_GUESS, 0.5, ALL)) == 1


def test_the_ngram_guess_is_merged_as_an_independent_chance() -> None:
    tree = received((1, [(0, 1, HALF), (1, 2, HALF), (0, 3, math.log(0.1))]))
    rows = bind(9, [SourceTree(3, tree)], NgramGuess(4, (1, 5)), 0.6, ALL)
    assert shape(rows) == [(1, 0, 0.8), (5, 1, 0.36), (2, 1, 0.25), (3, 0, 0.1)]
    assert rows.is_ngram == [False, True, True, False, False]
    assert rows.sources == [0, 3, 0, 3, 3]


def test_trees_that_share_a_vertex_count_the_larger_chance_and_the_first_arrival() -> None:
    early = received((1, [(0, 1, QUARTER)]), (8, [(1, 2, HALF)]))
    late = received((5, [(0, 3, QUARTER), (0, 1, HALF), (2, 2, HALF)]))
    rows = bind(9, [SourceTree(11, late), SourceTree(12, early)], NO_GUESS, 0.5, ALL)
    assert shape(rows) == [(1, 0, 0.5), (3, 0, 0.25), (2, 1, 0.25)]
    assert rows.sources == [0, 12, 11, 11]
    assert rows.seconds == [0, 11, 0, 12]


def test_of_several_trees_of_one_draft_the_largest_chance_counts_and_covers_once() -> None:
    trees = [received((at, [(0, 1, math.log(p))])) for at, p in enumerate([0.2, 0.4, 0.3])]
    sources = [SourceTree(at, tree) for at, tree in enumerate(trees, 5)]
    for order in (sources, sources[::-1], [sources[1], sources[0], sources[2]]):
        rows = bind(9, order, NO_GUESS, 0.5, ALL)
        assert shape(rows) == [(1, 0, 0.4)]
        assert math.isclose(rows.covered[0], 0.4, rel_tol=1e-6)
        assert (rows.sources[1], rows.seconds[1]) == (5, 6)


def test_a_draft_is_believed_as_far_as_the_best_of_its_trees_says() -> None:
    low, high = received((1, [(0, 1, HALF)])), received((1, [(0, 2, HALF)]))
    other = received((1, [(0, 3, HALF)]))
    known = SourceTree(5, high, draft=1, quality=0.8)
    late = SourceTree(6, low, draft=1, quality=0.1)  # says less, for it knows less
    rival = SourceTree(7, other, draft=2, quality=0.5)
    expected = [(1, 0, 0.5), (2, 0, 0.5), (3, 0, 0.2)]
    assert sorted(shape(bind(9, [known, late, rival], NO_GUESS, 0.5, ALL))) == expected


def test_what_is_equally_probable_comes_in_the_order_of_arrival() -> None:
    one = received((2, [(0, 1, HALF), (0, 2, HALF)]))
    two = received((1, [(0, 2, HALF), (0, 3, HALF)]))
    rows = bind(9, [SourceTree(5, one), SourceTree(6, two)], NO_GUESS, 0.5, ALL)
    assert rows.token_ids == [9, 2, 3, 1]
    assert rows.sources == [0, 6, 6, 5]


def test_law3_a_node_that_is_sure_of_everything_gets_no_more_rows_than_it_earns() -> None:
    """Eight guesses at 0.95 each, on every level, by a node whose guesses have all been wrong."""
    vertices = [((index - 1) // 8, index % 8, math.log(0.95)) for index in range(1, 73)]
    tree = received((1, vertices))
    rows = bind(9, [SourceTree(3, tree, factor=0.02)], NO_GUESS, 0.5, BindLimits(0.01, 32, 24))
    assert len(rows) == 1
    sure = bind(9, [SourceTree(3, tree)], NO_GUESS, 0.5, BindLimits(0.1, 32, 24))
    assert [prob for _, _, prob in shape(sure)] == [0.125] * 8


def test_no_row_lies_below_max_depth_and_no_more_than_max_rows_are_taken() -> None:
    tree = received((1, [(0, 1, 0.0), (1, 2, 0.0), (2, 3, 0.0)]))
    source = SourceTree(1, tree)
    guess = NgramGuess(2, (1, 2, 3, 4))
    assert len(bind(9, [source], guess, 1.0, BindLimits(0.0, 8, 2))) == 3
    assert len(bind(9, [source], guess, 1.0, BindLimits(0.0, 8, 0))) == 1
    assert len(bind(9, [source], guess, 1.0, BindLimits(0.0, 1, 9))) == 2
    assert len(bind(9, [source], guess, 1.0, BindLimits(0.0, 0, 9))) == 1


def test_the_better_draft_model_says_how_probable_the_children_are() -> None:
    small = received((1, [(0, 1, HALF), (0, 2, HALF), (1, 4, HALF)]))
    large = received((2, [(0, 1, math.log(0.8)), (0, 3, math.log(0.1))]))
    sources = [SourceTree(5, small, draft=1, quality=0.7), SourceTree(6, large, 1.0, 2, 0.8)]
    expected = [(1, 0, 0.8), (4, 1, 0.4), (2, 0, 0.2), (3, 0, 0.1)]
    # 4: half of what its parent has, for the larger model says nothing there; 2: 0.4 of a half
    assert shape(bind(9, sources[::-1], NO_GUESS, 0.5, ALL)) == expected
    rows = bind(9, sources, NO_GUESS, 0.5, ALL)
    assert shape(rows) == expected
    assert rows.sources == [0, 5, 5, 5, 6]
    assert rows.seconds == [0, 6, 0, 0, 0]
    assert rows.covered == pytest.approx([1.0, 0.4, 0, 0, 0])


def test_between_drafts_of_equal_quality_the_lower_number_is_believed() -> None:
    one, two = received((1, [(0, 1, HALF)])), received((2, [(0, 1, QUARTER)]))
    sources = [SourceTree(5, one, draft=2, quality=0.7), SourceTree(6, two, 1.0, 1, 0.7)]
    assert shape(bind(9, sources, NO_GUESS, 0.5, ALL)) == [(1, 0, 0.25)]


def test_a_factor_scales_a_path_once_however_the_drafts_change_along_it() -> None:
    small = received((1, [(0, 1, HALF), (1, 2, HALF), (2, 3, HALF)]))
    large = received((2, [(0, 1, HALF), (1, 2, QUARTER)]))
    sources = [SourceTree(5, small, 0.5, 1, 0.7), SourceTree(6, large, 0.8, 2, 0.8)]
    rows = bind(9, sources, NO_GUESS, 0.5, ALL)
    assert shape(rows) == [(1, 0, 0.4), (2, 1, 0.1), (3, 2, 0.05)]


def test_what_vanished_in_one_tree_does_not_come_back_through_another() -> None:
    lost = received((1, [(0, 1, -2000.0), (1, 2, 0.0)]))
    large = received((2, [(0, 1, HALF)]))
    sources = [SourceTree(5, lost, 1.0, 1, 0.7), SourceTree(6, large, 1.0, 2, 0.8)]
    assert shape(bind(9, sources, NO_GUESS, 0.5, ALL)) == [(1, 0, 0.5), (2, 1, 0.0)]


def test_covered_counts_children_that_are_no_rows() -> None:
    tree = received((1, [(0, 1, HALF), (0, 2, QUARTER), (1, 3, HALF), (3, 4, 0.0), (4, 5, 0.0)]))
    rows = bind(9, [SourceTree(3, tree)], NO_GUESS, 0.5, BindLimits(0.3, 9, 9))
    assert shape(rows) == [(1, 0, 0.5)]
    assert rows.covered == pytest.approx([0.75, 0.25])
    rows = bind(9, [SourceTree(3, tree)], NO_GUESS, 0.5, BindLimits(0.0, 1, 9))
    assert rows.covered == pytest.approx([0.75, 0.25])
    rows = bind(9, [SourceTree(3, tree)], NgramGuess(4, (2,)), 0.5, BindLimits(0.3, 9, 9))
    assert rows.covered == pytest.approx(
        [1.0, 0.0, 0.25]
    )  # 1/2 and 1 - 3/4 x 1/2: more than certain


def test_nothing_is_uncovered_where_nothing_may_stand() -> None:
    tree = received((1, [(0, 1, HALF), (1, 2, HALF)]))
    rows = bind(9, [SourceTree(3, tree)], NO_GUESS, 0.5, BindLimits(0.0, 9, 1))
    assert rows.covered == pytest.approx([0.5, 0.5])


def test_the_engines_own_tree_brings_rows_but_is_no_source() -> None:
    own = SourceTree(0, received((1, [(0, 1, HALF), (0, 2, QUARTER)])), is_own=True)
    node = SourceTree(4, received((2, [(0, 1, QUARTER), (0, 3, math.log(0.1))])))
    rows = bind(9, [own, node], NO_GUESS, 0.5, ALL)
    assert shape(rows) == [(1, 0, 0.5), (2, 0, 0.25), (3, 0, 0.1)]
    assert rows.sources == [0, 4, 0, 4]
    assert rows.seconds == [0, 0, 0, 0]
    assert rows.is_own == [False, True, True, False]


@dataclass
class SlowVertex:
    prob: float
    holders: list[tuple[int, int, int]]  # (arrival, position of the source, index)
    is_ngram: bool = False


def claimed_above(tree: DraftTree, index: int) -> float:
    """By how much the claims on the way down exceed certainty."""
    above = [tree.vertex(tree.vertex(at).parent) for at in path(tree, index)]
    claims = [sum(math.exp(child.log_prob) for child in v.children.values()) for v in above]
    return math.prod(max(1.0, claim) for claim in claims)


def slow_bind(
    sources: Sequence[SourceTree], guess: NgramGuess, rate: float, limits: BindLimits
) -> list[tuple[tuple[int, ...], SlowVertex]]:
    """Every vertex of every tree by its path, all merged, all sorted, cut."""
    merged: dict[tuple[int, ...], SlowVertex] = {}
    for at, source in enumerate(sources):
        if not source.tree.is_full:
            continue
        tree = source.tree.tree
        for index in tree:
            key = tokens_to(tree, index)
            claim = source.factor * math.exp(path_log_prob(tree, index))
            prob = min(1.0, claim / claimed_above(tree, index))
            vertex = merged.setdefault(key, SlowVertex(0.0, []))
            vertex.prob = max(vertex.prob, prob)
            vertex.holders.append((tree.vertex(index).arrival, at, index))
    for depth in range(1, len(guess.token_ids) + 1):
        vertex = merged.setdefault(guess.token_ids[:depth], SlowVertex(0.0, []))
        vertex.prob = 1 - (1 - vertex.prob) * (1 - rate**depth)
        vertex.is_ngram = True
    for key in sorted(merged, key=len):
        above = merged[key[:-1]].prob if len(key) > 1 else 1.0
        merged[key].prob = min(merged[key].prob, above)
        merged[key].holders.sort()

    def order(key: tuple[int, ...]) -> tuple[float, int, int, int]:
        holders = merged[key].holders
        first = (holders[0][0], holders[0][2]) if holders else (1 << 62, 0)
        return (-merged[key].prob, len(key), *first)

    chosen = [
        key
        for key in sorted(merged, key=order)
        if merged[key].prob >= limits.row_price and len(key) <= limits.max_depth
    ]
    return [(key, merged[key]) for key in chosen[: limits.max_rows]]


@dataclass(frozen=True)
class Case:
    sources: list[SourceTree]
    guess: NgramGuess
    rate: float
    limits: BindLimits


@st.composite
def cases(draw: st.DrawFn, num_drafts: int) -> Case:
    """Trees over three tokens, with many equal probabilities, grown in several proposals."""
    tokens = st.integers(0, 2)
    committed = draw(st.lists(tokens, max_size=2))
    sources = []
    arrival = 0
    for number in range(draw(st.integers(0, 4))):
        tree = ReceivedTree(1, 4, committed, 9)
        used: set[tuple[int, int]] = set()
        for _ in range(draw(st.integers(0, 3))):
            arrival += 1
            first, new = tree.next_index, []
            for index in range(first, first + draw(st.integers(0, 8))):
                edge = (draw(st.integers(max(0, index - 4), index - 1)), draw(tokens))
                if edge in used:
                    break
                used.add(edge)
                new.append((*edge, -draw(st.sampled_from([0, 1, 4, 4, 8, 16, 24])) / 16))
            tree.extend(first, columns(new), arrival)
        draft = draw(st.integers(1, num_drafts))
        sources.append(
            SourceTree(
                source=number + 5,
                tree=tree,
                factor=draw(st.sampled_from([0.02, 0.5, 1.0, 1.3])),
                draft=draft,
                quality=draw(st.sampled_from([0.5, 0.7])),
                is_own=num_drafts > 1 and draw(st.booleans()),
            )
        )
    tree_tokens = tuple(draw(st.lists(tokens, max_size=4)))
    return Case(
        sources,
        NgramGuess(3, tree_tokens),
        draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
        BindLimits(
            row_price=draw(st.sampled_from([0.0, 0.05, 0.4])),
            max_rows=draw(st.integers(0, 12)),
            max_depth=draw(st.integers(0, 5)),
        ),
    )


def paths_of(rows: BoundRows) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for row in range(1, len(rows)):
        assert 0 <= rows.parents[row] < row
        paths.append((*paths[rows.parents[row]], int(rows.token_ids[row])))
    return paths


@given(cases(num_drafts=1))
def test_bind_equals_brute_force_over_all_vertices(case: Case) -> None:
    sources = case.sources
    rows = bind(9, sources, case.guess, case.rate, case.limits)
    expected = slow_bind(sources, case.guess, case.rate, case.limits)
    paths = paths_of(rows)
    assert paths[1:] == [key for key, _ in expected]
    assert rows.depths == [len(path) for path in paths]
    for row, (_, vertex) in enumerate(expected, 1):
        assert math.isclose(rows.probs[row], vertex.prob, rel_tol=1e-6)
        numbers = [sources[at].source for _, at, _ in vertex.holders] + [0, 0]
        assert [rows.sources[row], rows.seconds[row]] == numbers[:2]
        assert rows.is_ngram[row] == vertex.is_ngram


@given(st.one_of(cases(num_drafts=1), cases(num_drafts=3)))
def test_bind_equals_its_plain_twin(case: Case) -> None:
    rows = bind(9, case.sources, case.guess, case.rate, case.limits)
    plain = plain_bind(9, case.sources, case.guess, case.rate, case.limits)
    for name in ("token_ids", "parents", "depths", "sources", "seconds", "is_ngram", "is_own"):
        assert getattr(rows, name) == getattr(plain, name), name
    assert rows.probs == pytest.approx(plain.probs, rel=1e-9)
    assert rows.covered == pytest.approx(plain.covered, rel=1e-9, abs=1e-9)


@given(cases(num_drafts=3))
def test_no_row_is_more_probable_than_its_parent_or_covered_beyond_itself(case: Case) -> None:
    rows = bind(9, case.sources, case.guess, case.rate, case.limits)
    assert all(prob >= case.limits.row_price for prob in rows.probs[1:])
    assert rows.probs == sorted(rows.probs, reverse=True)
    below = [0.0] * len(rows)
    for prob, parent in zip(rows.probs[1:], rows.parents[1:], strict=True):
        assert prob <= rows.probs[parent]
        below[parent] += prob
    for prob, covered, chosen in zip(rows.probs, rows.covered, below, strict=True):
        assert min(chosen, prob) - 1e-9 <= covered <= prob
