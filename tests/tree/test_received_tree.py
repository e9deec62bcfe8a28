import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.draft_tree import TreeError
from specedge_p2p.tree.received_tree import ReceivedTree
from tests.support.trees import RememberingTree, columns


def test_follows_commits_and_keeps_what_lies_below() -> None:
    tree = ReceivedTree(1, 10, [], 5)
    assert tree.extend(1, columns([(0, 1, -0.1), (0, 2, -1.0), (1, 3, -0.1), (2, 4, -0.1)])) == 0
    assert (tree.num_live, tree.num_vertices, tree.next_index) == (4, 4, 5)
    tree.commit([1])
    assert (tree.matched, tree.is_full, tree.num_live, tree.num_vertices) == (1, True, 1, 4)
    assert tree.extend(5, columns([(2, 9, -0.1), (3, 9, -0.1), (5, 9, -0.1)])) == 2
    assert list(tree.tree) == [3, 6]


def test_a_walk_that_falls_short_is_completed_by_later_vertices() -> None:
    tree = ReceivedTree(1, 10, [], 5)
    tree.extend(1, columns([(0, 1, -0.1)]))
    tree.commit([1, 2, 3])
    assert (tree.matched, tree.is_full, tree.num_live, tree.is_dead) == (1, False, 0, False)
    discarded = tree.extend(
        2, columns([(1, 7, -0.1), (1, 2, -0.1), (2, 8, -0.1), (3, 3, -0.1), (5, 4, -0.1)])
    )
    assert discarded == 2  # the sibling that diverges and its child
    assert (tree.matched, tree.is_full, tree.num_live) == (5, True, 1)


def test_commits_beyond_a_short_walk_are_remembered() -> None:
    tree = ReceivedTree(1, 10, [4], 5)
    tree.commit([5])
    assert tree.extend(1, columns([(0, 4, -0.1), (1, 5, -0.1), (2, 6, -0.1)])) == 0
    assert (tree.matched, tree.is_full, tree.num_live) == (2, True, 1)


def test_divergence_discards_everything_but_the_matched_vertex() -> None:
    tree = ReceivedTree(1, 10, [], 5)
    tree.extend(1, columns([(0, 1, -0.1), (1, 2, -0.1), (1, 3, -0.1), (2, 4, -0.1)]))
    tree.commit([1, 9])
    assert (tree.matched, tree.is_full, tree.num_live) == (1, False, 0)
    assert tree.extend(5, columns([(4, 1, -0.1), (1, 9, -0.1), (6, 1, -0.1)])) == 1
    assert (tree.matched, tree.is_full, tree.num_live) == (6, True, 1)


def test_an_ended_tree_counts_and_discards() -> None:
    tree = ReceivedTree(1, 10, [7], 5)
    tree.end()
    assert tree.is_dead
    assert not tree.is_full
    tree.commit([1])
    assert tree.extend(1, columns([(0, 7, -0.1), (1, 1, -0.1)])) == 2
    assert (tree.num_live, tree.num_vertices) == (0, 2)
    assert not tree.is_full


@pytest.mark.parametrize(
    ("first_index", "vertices", "text"),
    [
        (3, [(0, 1, -0.1)], "came where 2 was due"),
        (1, [(0, 1, -0.1)], "came where 2 was due"),
        (2, [(2, 1, -0.1)], "cannot have parent"),
        (2, [(-1, 1, -0.1)], "cannot have parent"),
        (2, [(0, 1, 0.1)], "above 0"),
        (2, [(0, 1, float("nan"))], "above 0"),
        (2, [(0, 1, float("-inf"))], "not finite"),
        (2, [(1, 5, -0.1), (1, 5, -0.1)], "token 5 already"),
        (2, [(1, 5, -0.1), (2, 5, -0.1), (3, 5, -0.1)], "beyond the last position"),
    ],
)
def test_impossible_vertices_are_refused(
    first_index: int, vertices: list[tuple[int, int, float]], text: str
) -> None:
    tree = ReceivedTree(1, 10, [], 5, max_position=13)
    tree.extend(1, columns([(0, 1, -0.1)]))
    with pytest.raises(TreeError, match=text):
        tree.extend(first_index, columns(vertices))


def test_the_last_position_may_be_guessed() -> None:
    tree = ReceivedTree(1, 10, [], 5, max_position=12)
    tree.extend(1, columns([(0, 1, -0.1), (1, 1, -0.1)]))  # positions 10 and 11
    assert tree.num_live == 2


@given(st.data())
def test_law1_output_depends_on_a_walk_that_equals_brute_force(data: st.DataObject) -> None:
    """Whatever arrives when, exactly what agrees with the committed tokens is alive."""
    tokens = st.integers(0, 2)
    known = data.draw(st.lists(tokens, max_size=3))
    tree = ReceivedTree(1, 4, known, 0)
    slow = RememberingTree(committed=list(known))
    used: set[tuple[int, int]] = set()
    for arrival in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            new = data.draw(st.lists(tokens, max_size=3))
            tree.commit(new)
            slow.committed.extend(new)
        else:
            first = tree.next_index
            for _ in range(data.draw(st.integers(0, 5))):
                parent, token_id = data.draw(st.integers(0, len(slow.vertices))), data.draw(tokens)
                if (parent, token_id) not in used:
                    used.add((parent, token_id))
                    slow.vertices.append((parent, token_id, -0.5))
            discarded = tree.extend(first, columns(slow.vertices[first - 1 :]), arrival)
            num_new = len(slow.vertices) - first + 1
            assert 0 <= discarded <= num_new
        assert tree.matched == slow.matched()
        assert tree.is_full == slow.is_full()
        assert set(tree.tree) == (slow.live() if slow.is_full() else set())
        assert tree.num_live == len(slow.live())
        assert tree.num_vertices == len(slow.vertices)
