import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.draft_tree import Candidates, DraftTree, TreeError
from tests.support.trees import hang, path, path_log_prob


def small_tree() -> DraftTree:
    """0 - 1(a) - 3(c) - 5(e); 0 - 2(b) - 4(d)."""
    tree = DraftTree(7)
    for index, parent, token_id in [(1, 0, 10), (2, 0, 11), (3, 1, 12), (4, 2, 13), (5, 3, 14)]:
        assert hang(tree, index, parent, token_id, -0.5, arrival=index * 10)
    return tree


def test_everything_about_a_vertex() -> None:
    tree = small_tree()
    assert (tree.root, len(tree)) == (0, 5)
    root, vertex = tree.root_vertex, tree.vertex(3)
    assert (root.token_id, root.parent, root.depth) == (7, -1, 0)
    assert (vertex.token_id, vertex.parent, vertex.depth) == (12, 1, 2)
    assert (vertex.log_prob, vertex.total - root.total, vertex.arrival) == (-0.5, -1.0, 30)
    assert path(tree, 5) == [1, 3, 5]
    assert path(tree, 0) == []
    assert {token: child.index for token, child in root.children.items()} == {10: 1, 11: 2}
    assert list(tree) == [1, 2, 3, 4, 5]


def test_reroot_keeps_what_lies_below_with_its_indices_and_depths() -> None:
    tree = small_tree()
    tree.reroot(1)
    assert tree.root == 1
    assert list(tree) == [3, 5]
    assert 2 not in tree
    assert 4 not in tree
    assert 1 in tree
    assert tree.vertex(5).depth == 3
    assert path(tree, 5) == [3, 5]
    assert path_log_prob(tree, 5) == -1.0
    with pytest.raises(KeyError):
        tree.reroot(2)


def test_a_vertex_below_a_pruned_one_is_discarded() -> None:
    tree = small_tree()
    tree.reroot(1)
    assert not hang(tree, 6, 4, 20, -1.0)
    assert not hang(tree, 7, 6, 21, -1.0)
    assert hang(tree, 8, 3, 20, -1.0)
    assert list(tree) == [3, 5, 8]


def test_prune_below_root_leaves_the_root() -> None:
    tree = small_tree()
    tree.prune_below_root()
    assert len(tree) == 0
    assert not tree.root_vertex.children
    assert hang(tree, 6, 0, 10, -1.0)


def test_equal_siblings_and_used_indices_are_refused() -> None:
    tree = small_tree()
    with pytest.raises(TreeError, match="token 10 already"):
        hang(tree, 6, 0, 10, -1.0)
    with pytest.raises(TreeError, match="does not follow"):
        hang(tree, 5, 0, 30, -1.0)
    tree.reroot(2)
    with pytest.raises(TreeError, match="does not follow"):
        hang(tree, 1, 2, 30, -1.0)


def test_indices_may_begin_anywhere() -> None:
    tree = DraftTree(7, root_index=5)
    assert tree.root == 5
    with pytest.raises(TreeError):
        hang(tree, 5, 5, 1, 0.0)
    assert hang(tree, 9, 5, 1, 0.0)


def test_candidates_are_read_only_columns_of_one_length() -> None:
    token_ids = np.array([1, 2], dtype=np.int32)
    columns = Candidates(token_ids, np.zeros(2, np.int32), np.zeros(2, np.float32))
    assert len(columns) == 2
    with pytest.raises(ValueError, match="read-only"):
        columns.token_ids[0] = 5
    token_ids[0] = 9  # the caller's own array stays the caller's
    with pytest.raises(TreeError):
        Candidates(token_ids, np.zeros(1, np.int32), np.zeros(2, np.float32))


@given(st.data())
def test_reroot_equals_brute_force(data: st.DataObject) -> None:
    tree = DraftTree(0)
    parents: dict[int, int] = {}
    for index in range(1, data.draw(st.integers(1, 25)) + 1):
        parent = data.draw(st.integers(0, index - 1))
        parents[index] = parent
        hang(tree, index, parent, index, -0.25)
    chosen = data.draw(st.integers(0, len(parents)))

    def ancestors(index: int) -> list[int]:
        above = [index]
        while above[-1]:
            above.append(parents[above[-1]])
        return above

    tree.reroot(chosen)
    expected = [index for index in parents if index != chosen and chosen in ancestors(index)]
    assert list(tree) == expected
    for index in expected:
        assert tree.vertex(index).depth == len(ancestors(index)) - 1
        below = ancestors(index)[: ancestors(index).index(chosen)]
        assert path(tree, index) == below[::-1]
        assert math.isclose(path_log_prob(tree, index), -0.25 * len(below))


def test_what_was_cut_off_cannot_become_the_root() -> None:
    tree = small_tree()
    hang(tree, 6, 5, 15, -0.5)
    tree.reroot(3)
    for index in (0, 1, 2, 4):  # cut off, though nobody has asked yet what is alive
        with pytest.raises(KeyError):
            tree.reroot(index)
    tree.prune_below_root()
    for index in (5, 6):
        with pytest.raises(KeyError):
            tree.reroot(index)
    tree.reroot(3)
    assert tree.root == 3
    assert list(tree) == []


def test_children_are_ranked_by_probability_then_index() -> None:
    tree = DraftTree(7)
    for index, log_prob in enumerate([-1.0, -0.5, -1.0, -2.0, -0.5], 1):
        hang(tree, index, 0, index, log_prob)
    root = tree.root_vertex
    assert [vertex.index for vertex in root.ranked] == [2, 5, 1, 3, 4]
    assert math.isclose(root.mass, 2 * math.exp(-0.5) + 2 * math.exp(-1) + math.exp(-2))
    assert list(root.children) == [1, 2, 3, 4, 5]


@given(st.data())
def test_the_live_vertices_are_right_whenever_they_are_asked_for(data: st.DataObject) -> None:
    """Against a tree that is worked out anew: cuts pile up before anything is forgotten."""
    tree = DraftTree(0)
    parents: dict[int, int] = {}
    root, cut = 0, set[int]()

    def is_alive(index: int) -> bool:
        while index != root:
            if index not in parents or index in cut:
                return False
            index = parents[index]
        return True

    for _ in range(data.draw(st.integers(1, 30))):
        index = len(parents) + 1
        match data.draw(st.sampled_from(["add", "add", "add", "reroot", "prune", "look"])):
            case "add":
                parent = data.draw(st.integers(0, index - 1))
                added = hang(tree, index, parent, index, -0.5)
                assert added == is_alive(parent)
                parents[index] = parent
            case "reroot":
                chosen = data.draw(st.integers(0, index - 1))
                if is_alive(chosen):
                    tree.reroot(chosen)
                    root = chosen
                else:
                    with pytest.raises(KeyError):
                        tree.reroot(chosen)
            case "prune":
                tree.prune_below_root()
                cut |= {i for i in parents if i != root and is_alive(i)}
            case _:
                live = [i for i in parents if i != root and is_alive(i)]
                assert list(tree) == live
                assert len(tree) == len(live)
                assert all((i in tree) == is_alive(i) for i in range(index + 1))
                assert tree.root == root


def test_vertices_taken_together_are_those_taken_one_by_one() -> None:
    columns = [(0, 5, -0.5), (0, 6, -0.25), (1, 7, -0.125)]
    one, other = DraftTree(3), DraftTree(3)
    for index, (parent, token_id, log_prob) in enumerate(columns, 1):
        hang(one, index, parent, token_id, log_prob, arrival=2)
    assert other.extend(1, columns, 2, max_depth=2) == 0
    assert list(one) == list(other) == [1, 2, 3]
    for index in one:
        assert path_log_prob(one, index) == path_log_prob(other, index)
        assert list(one.vertex(index).children) == list(other.vertex(index).children)
    assert [v.index for v in other.root_vertex.ranked] == [2, 1]
    other.reroot(1)
    assert other.extend(4, [(2, 8, -1.0), (3, 8, -1.0)], 3, max_depth=3) == 1  # one had died


@pytest.mark.parametrize(
    ("first_index", "column", "text"),
    [
        (1, (0, 9, -1.0), "does not follow"),
        (2, (2, 9, -1.0), "cannot have parent"),
        (2, (0, 5, -1.0), "already"),
        (2, (0, 9, 0.5), "not finite"),
        (2, (0, 9, float("nan")), "not finite"),
        (2, (1, 9, -1.0), "last position"),
    ],
)
def test_vertices_taken_together_are_checked(
    first_index: int, column: tuple[int, int, float], text: str
) -> None:
    tree = DraftTree(3)
    hang(tree, 1, 0, 5, -0.5)
    with pytest.raises(TreeError, match=text):
        tree.extend(first_index, [column], 0, max_depth=1)
