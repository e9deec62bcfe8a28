import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.binding import BindLimits, BoundRows, Seen, SourceTree, bind, first_guess
from specedge_p2p.tree.ngram import NgramGuess
from specedge_p2p.tree.received_tree import ReceivedTree
from tests.support.trees import columns

ALL = BindLimits(row_price=0.0, max_rows=100, max_depth=100)
NO_GUESS = NgramGuess()
HALF = math.log(0.5)
QUARTER = math.log(0.25)


def received(*parts: tuple[int, Sequence[tuple[int, int, float]]]) -> ReceivedTree:
    """A tree of (arrival, vertices) extensions."""
    tree = ReceivedTree(1, 4, [], 9)
    for arrival, vertices in parts:
        tree.extend(tree.next_index, columns(vertices), arrival)
    return tree


def shape(rows: BoundRows) -> list[tuple[int, int, float]]:
    """(token, parent row, probability) of the rows below the root."""
    columns = zip(rows.token_ids.tolist(), rows.parents.tolist(), rows.probs.tolist(), strict=True)
    return [(token, parent, round(prob, 4)) for token, parent, prob in columns][1:]


def test_without_sources_the_root_stands_alone() -> None:
    rows = bind(9, [], NO_GUESS, 0.5, ALL)
    assert len(rows) == 1
    assert rows.token_ids.tolist() == [9]
    assert rows.parents.tolist() == [-1]
    assert rows.depths.tolist() == [0]
    assert rows.probs.tolist() == [1.0]
    assert rows.sources.tolist() == [0]
    assert not rows.is_ngram.any()
    assert rows.token_ids.dtype == np.int32
    assert rows.probs.dtype == np.float32


def test_rows_are_the_most_probable_vertices_parents_first() -> None:
    tree = received((1, [(0, 1, HALF), (0, 2, QUARTER), (1, 3, HALF), (2, 4, HALF), (3, 5, HALF)]))
    rows = bind(9, [SourceTree(3, tree)], NO_GUESS, 0.5, BindLimits(0.12, 4, 9))
    assert shape(rows) == [(1, 0, 0.5), (2, 0, 0.25), (3, 1, 0.25), (4, 2, 0.125)]
    assert rows.sources.tolist() == [0, 3, 3, 3, 3]
    assert rows.depths.tolist() == [0, 1, 1, 2, 2]


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
    assert rows.is_ngram.tolist() == [False, True, True, False, False]
    assert rows.sources.tolist() == [0, 3, 0, 3, 3]


def test_trees_that_share_a_vertex_count_the_larger_chance_and_the_first_arrival() -> None:
    early = received((1, [(0, 1, QUARTER)]), (8, [(1, 2, HALF)]))
    late = received((5, [(0, 3, QUARTER), (0, 1, HALF), (2, 2, HALF)]))
    rows = bind(9, [SourceTree(11, late), SourceTree(12, early)], NO_GUESS, 0.5, ALL)
    assert shape(rows) == [(1, 0, 0.5), (3, 0, 0.25), (2, 1, 0.25)]
    assert rows.sources.tolist() == [0, 12, 11, 11]
    assert rows.seconds.tolist() == [0, 11, 0, 12]


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
    assert rows.sources.tolist() == [0, 5, 5, 5, 6]
    assert rows.seconds.tolist() == [0, 6, 0, 0, 0]
    assert rows.covered.tolist() == np.array([1.0, 0.4, 0, 0, 0], np.float32).tolist()


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
    assert rows.covered.tolist() == [0.75, 0.25]
    rows = bind(9, [SourceTree(3, tree)], NO_GUESS, 0.5, BindLimits(0.0, 1, 9))
    assert rows.covered.tolist() == [0.75, 0.25]
    rows = bind(9, [SourceTree(3, tree)], NgramGuess(4, (2,)), 0.5, BindLimits(0.3, 9, 9))
    assert rows.covered.tolist() == [1.0, 0.0, 0.25]  # 1/2 and 1 - 3/4 x 1/2: more than certain


def test_nothing_is_uncovered_where_nothing_may_stand() -> None:
    tree = received((1, [(0, 1, HALF), (1, 2, HALF)]))
    rows = bind(9, [SourceTree(3, tree)], NO_GUESS, 0.5, BindLimits(0.0, 9, 1))
    assert rows.covered.tolist() == [0.5, 0.5]


def test_the_engines_own_tree_brings_rows_but_is_no_source() -> None:
    own = SourceTree(0, received((1, [(0, 1, HALF), (0, 2, QUARTER)])), is_own=True)
    node = SourceTree(4, received((2, [(0, 1, QUARTER), (0, 3, math.log(0.1))])))
    rows = bind(9, [own, node], NO_GUESS, 0.5, ALL)
    assert shape(rows) == [(1, 0, 0.5), (2, 0, 0.25), (3, 0, 0.1)]
    assert rows.sources.tolist() == [0, 4, 0, 4]
    assert rows.seconds.tolist() == [0, 0, 0, 0]
    assert rows.is_own.tolist() == [False, True, True, False]


def test_a_trees_first_level_is_scored_against_the_choice() -> None:
    tree = received((1, [(0, 1, HALF), (0, 2, QUARTER), (1, 3, HALF)]))
    source = SourceTree(3, tree, factor=0.1)
    hit, miss = first_guess(source, 2), first_guess(source, 3)
    assert hit is not None
    assert math.isclose(hit.predicted, 0.75, rel_tol=1e-6)  # the factor is left out
    assert (hit.is_hit, miss) == (True, Seen(hit.predicted, False))
    greedy = SourceTree(3, received((1, [(0, 1, 0.0), (0, 2, 0.0)])))
    assert first_guess(greedy, 1) == Seen(1.0, True)
    tree.commit([1, 3])
    assert first_guess(source, 3) is None  # nothing was guessed here
    tree.commit([8])
    assert first_guess(source, 3) is None


@dataclass
class SlowVertex:
    prob: float
    holders: list[tuple[int, int, int]]  # (arrival, position of the source, index)
    is_ngram: bool = False


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
            key = tuple(tree.token_id(i) for i in tree.path(index))
            prob = min(1.0, source.factor * math.exp(tree.path_log_prob(index)))
            vertex = merged.setdefault(key, SlowVertex(0.0, []))
            vertex.prob = max(vertex.prob, prob)
            vertex.holders.append((tree.arrival(index), at, index))
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


@given(st.data())
def test_bind_equals_brute_force_over_all_vertices(data: st.DataObject) -> None:
    tokens = st.integers(0, 2)
    committed = data.draw(st.lists(tokens, max_size=2))
    sources = []
    arrival = 0
    for number in range(data.draw(st.integers(0, 3))):
        tree = ReceivedTree(1, 4, committed, 9)
        used: set[tuple[int, int]] = set()
        for _ in range(data.draw(st.integers(0, 3))):
            arrival += 1
            first, new = tree.next_index, []
            for index in range(first, first + data.draw(st.integers(0, 6))):
                edge = (data.draw(st.integers(0, index - 1)), data.draw(tokens))
                if edge not in used:
                    used.add(edge)
                    new.append((*edge, -data.draw(st.integers(0, 24)) / 16))
                else:
                    break
            tree.extend(first, columns(new), arrival)
        factor = data.draw(st.sampled_from([0.02, 0.5, 1.0, 1.3]))
        sources.append(SourceTree(number + 5, tree, factor))
    guess = NgramGuess(3, tuple(data.draw(st.lists(tokens, max_size=4))))
    rate = data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    limits = BindLimits(
        row_price=data.draw(st.sampled_from([0.0, 0.05, 0.4])),
        max_rows=data.draw(st.integers(0, 12)),
        max_depth=data.draw(st.integers(0, 5)),
    )
    rows = bind(9, sources, guess, rate, limits)
    expected = slow_bind(sources, guess, rate, limits)

    paths: list[tuple[int, ...]] = [()]
    for row in range(1, len(rows)):
        assert 0 <= rows.parents[row] < row
        paths.append((*paths[rows.parents[row]], int(rows.token_ids[row])))
    assert paths[1:] == [key for key, _ in expected]
    assert rows.depths.tolist() == [len(path) for path in paths]
    for row, (_, vertex) in enumerate(expected, 1):
        assert math.isclose(rows.probs[row], vertex.prob, rel_tol=1e-6)
        numbers = [sources[at].source for _, at, _ in vertex.holders] + [0, 0]
        assert [rows.sources[row], rows.seconds[row]] == numbers[:2]
        assert rows.is_ngram[row] == vertex.is_ngram


def test_binding_eight_sessions_takes_far_less_than_a_step() -> None:
    rng = np.random.default_rng(3)
    trees = []
    for _ in range(8):
        parents = [int(rng.integers(0, max(1, index // 3))) for index in range(1, 257)]
        vertices = [(p, i, float(-rng.exponential(2))) for i, p in enumerate(parents, 1)]
        trees.append(received((1, vertices)))
    guess = NgramGuess(4, tuple(range(1, 9)))
    limits = BindLimits(0.01, 8, 24)
    best = math.inf
    for _ in range(100):
        begun = time.perf_counter()
        for tree in trees:
            bind(9, [SourceTree(1, tree)], guess, 0.5, limits)
        best = min(best, time.perf_counter() - begun)
    assert best < 0.002  # about 0.4 ms; the slack is for a loaded machine
