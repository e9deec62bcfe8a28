import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree import sent_tree
from specedge_p2p.tree.growth import Gain, GrowingTree, GrowthSettings
from specedge_p2p.tree.received_tree import ReceivedTree
from tests.support.trees import RememberingTree, tokens_to

Children = Sequence[tuple[int, float]]


def grow(tree: GrowingTree, vertex: int, children: Children) -> list[int]:
    """Expand one vertex with (token, probability) children; returns those that surfaced."""
    token_ids = np.array([[token for token, _ in children]], dtype=np.int32)
    probs = np.array([[prob for _, prob in children]])
    with np.errstate(divide="ignore"):
        tree.expand([vertex], token_ids, np.log(probs).astype(np.float32))
    found = tree.vertex(vertex).children
    return [found[token].number for token, _ in children if token in found]


def tokens_of(tree: GrowingTree, vertex: int) -> list[int]:
    """Tokens below the root down to a vertex."""
    found = []
    while vertex != tree.root:
        found.append(tree.token_id(vertex))
        vertex = tree.vertex(vertex).parent
    return found[::-1]


def depth(tree: GrowingTree, vertex: int) -> int:
    """Levels below the root."""
    return tree.vertex(vertex).depth - tree.vertex(tree.root).depth


def is_sent(tree: GrowingTree, vertex: int) -> bool:
    """Whether the tree on the wire has the vertex, as it has its root."""
    return tree.vertex(vertex).sent_in == tree.vertex(tree.root).sent_in


def gained(tree: GrowingTree, limit: int = 32) -> Gain:
    gain = tree.take_gain(limit)
    assert gain is not None
    return gain


def test_what_is_impossible_or_no_number_stays_finite_and_nothing_is_above_certain() -> None:
    tree = GrowingTree(10, 9, GrowthSettings(min_prob=0.0, branch_width=4))
    log_probs = np.array([[0.5, -1.0, -np.inf, np.nan]], np.float32)
    tree.expand([tree.root], np.array([[1, 2, 3, 4]], np.int32), log_probs)
    children = tree.vertex(tree.root).children
    assert [children[token].total for token in (1, 2, 3, 4)] == [0.0, -1.0, -100.0, -100.0]


def test_the_frontier_is_the_most_probable_that_are_not_expanded() -> None:
    tree = GrowingTree(10, 7, GrowthSettings(beam_width=2))
    assert tree.frontier() == (0,)
    a, b, c = grow(tree, 0, [(1, 0.5), (2, 0.3), (3, 0.2)])
    assert tree.is_expanded(0)
    assert tree.frontier() == (a, b)
    assert tree.frontier(5) == (a, b, c)
    d, e = grow(tree, a, [(1, 0.9), (2, 0.1)])
    assert tree.frontier(5) == (d, b, c, e)
    assert (depth(tree, e), tree.token_id(e), tree.vertex(e).parent) == (2, 2, a)
    assert math.isclose(tree.vertex(e).total, math.log(0.05), abs_tol=1e-6)
    assert len(tree) == 5
    assert e in tree
    assert not tree.is_expanded(e)


def test_improbable_deep_and_last_vertices_are_not_expanded() -> None:
    tree = GrowingTree(10, 7, GrowthSettings(min_prob=0.1, look_ahead=2))
    (a,) = grow(tree, 0, [(1, 0.8), (2, 0.05)])
    assert tree.frontier() == (a,)
    (c,) = grow(tree, a, [(1, 0.9)])
    assert tree.frontier() == ()
    assert tree.commit([1])  # one level less, so there is one more to grow
    assert tree.frontier() == (c,)
    assert a in tree
    assert 0 not in tree
    end = GrowingTree(10, 7, GrowthSettings(), max_position=11)
    grow(end, 0, [(1, 0.8)])
    assert end.frontier() == ()  # its children would stand at 11


def test_without_a_least_probability_everything_grows() -> None:
    tree = GrowingTree(10, 7, GrowthSettings(min_prob=0.0))
    a, b = grow(tree, 0, [(1, 1.0), (2, 0.0)])
    assert tree.frontier() == (a, b)
    assert tree.commit([2])
    assert tree.vertex(tree.root).total == -100.0


def test_expanding_what_a_verdict_took_or_twice_changes_nothing() -> None:
    tree = GrowingTree(10, 7, GrowthSettings())
    a, b = grow(tree, 0, [(1, 0.8), (2, 0.1)])
    tree.commit([2])
    tree.expand([a], np.array([[5]], np.int32), np.zeros((1, 1), np.float32))
    assert len(tree) == 0
    grow(tree, b, [(1, 0.5)])
    grow(tree, b, [(2, 0.5)])
    assert len(tree) == 1


def test_law7_bounded_local_tree() -> None:
    tree = GrowingTree(10, 7, GrowthSettings(max_local=8, min_prob=0.1))
    grow(tree, 0, [(token, 0.12) for token in range(7)])
    assert len(tree) == 7
    assert tree.frontier()
    grow(tree, tree.frontier()[0], [(token, 0.9) for token in range(7)])
    assert len(tree) == 8
    assert tree.frontier() == ()
    assert tree.commit([0])  # what found no room surfaces when there is some
    assert len(tree) == 7


def test_what_is_improbable_surfaces_when_a_verdict_makes_it_probable() -> None:
    tree = GrowingTree(10, 7, GrowthSettings(min_prob=0.1))
    (a,) = grow(tree, 0, [(1, 0.2), (2, 0.05)])
    assert grow(tree, a, [(3, 0.45), (4, 0.4), (5, 0.02)]) == []
    assert len(tree) == 1
    assert tree.commit([1])
    assert [tree.token_id(v) for v in tree.frontier()] == [3, 4]
    assert gained(tree).candidates.token_ids.tolist() == [3, 4]
    assert tree.commit([5])  # one that never surfaced is a hit too
    assert (tree.num_committed, tree.frontier()) == (12, (tree.root,))
    grow(tree, tree.root, [(6, 0.05)])
    tree.tune(min_prob=0.01, look_ahead=24, max_unverified=256)
    assert gained(tree).candidates.token_ids.tolist() == [6]


def test_a_frontier_may_be_asked_for_better_vertices() -> None:
    tree = GrowingTree(10, 7, GrowthSettings())
    a, b = grow(tree, 0, [(1, 0.5), (2, 0.3)])
    assert tree.frontier(least_prob=0.4) == (a,)
    assert tree.frontier(least_prob=0.6) == ()
    assert tree.frontier() == (a, b)
    assert tree.num_levels == 1


def test_gains_are_parents_first_best_first_in_wire_indices() -> None:
    tree = GrowingTree(10, 7, GrowthSettings(min_prob=0.1))
    a, _b = grow(tree, 0, [(1, 0.8), (2, 0.15)])
    grow(tree, a, [(3, 1.0), (4, 0.05)])
    gain = gained(tree)
    assert (gain.tree_no, gain.first_index, gain.base_position) == (1, 1, 10)
    assert gain.candidates.token_ids.tolist() == [1, 3, 2]
    assert gain.candidates.parents.tolist() == [0, 1, 0]
    assert np.allclose(np.exp(gain.candidates.log_probs), [0.8, 1.0, 0.15])
    assert tree.take_gain(32) is None
    assert tree.num_unverified == 3
    assert is_sent(tree, a)


def test_gains_obey_limit_and_max_unverified() -> None:
    tree = GrowingTree(10, 7, GrowthSettings(max_unverified=3))
    grow(tree, 0, [(token, 0.2) for token in range(5)])
    assert tree.take_gain(0) is None
    assert len(gained(tree, 2).candidates) == 2
    assert len(gained(tree, 2).candidates) == 1
    assert tree.take_gain(2) is None
    tree.tune(min_prob=0.003, look_ahead=24, max_unverified=2)  # never lowered
    assert tree.settings.max_unverified == 3
    tree.tune(min_prob=0.3, look_ahead=24, max_unverified=9)
    assert tree.take_gain(2) is None
    assert tree.frontier() == ()
    tree.tune(min_prob=0.01, look_ahead=24, max_unverified=9)
    assert len(gained(tree).candidates) == 2


def test_a_hit_in_what_was_sent_stays_in_the_same_tree() -> None:
    tree = GrowingTree(10, 7, GrowthSettings(min_prob=0.1))
    a, b = grow(tree, 0, [(1, 0.8), (2, 0.15)])
    gained(tree, 1)
    (c,) = grow(tree, a, [(3, 0.9)])
    assert tree.commit([1])
    assert (tree.root, tree.tree_no, tree.num_committed) == (a, 1, 11)
    assert b not in tree
    gain = gained(tree)
    assert (gain.tree_no, gain.first_index, gain.base_position) == (1, 2, 10)
    assert gain.candidates.parents.tolist() == [1]
    assert tree.num_unverified == 1
    assert tree.vertex(c).parent == a


def test_a_hit_beyond_what_was_sent_begins_a_new_tree_with_what_is_live() -> None:
    tree = GrowingTree(10, 7, GrowthSettings(min_prob=0.1))
    _a, b = grow(tree, 0, [(1, 0.8), (2, 0.15)])
    gained(tree, 1)
    grow(tree, b, [(5, 0.9)])
    assert tree.commit([2])
    assert (tree.root, tree.tree_no) == (b, 2)
    gain = gained(tree)
    assert (gain.tree_no, gain.first_index, gain.base_position) == (2, 1, 11)
    assert gain.candidates.token_ids.tolist() == [5]
    assert gain.candidates.parents.tolist() == [0]


def test_a_miss_begins_a_new_tree_at_the_truth() -> None:
    tree = GrowingTree(10, 7, GrowthSettings())
    grow(tree, 0, [(1, 0.8)])
    gained(tree)
    assert not tree.commit([1, 9])
    assert (len(tree), tree.tree_no) == (0, 2)
    assert tree.token_id(tree.root) == 9
    assert tree.frontier() == (tree.root,)
    assert depth(tree, tree.root) == 0
    grow(tree, tree.root, [(3, 0.8)])
    gain = gained(tree)
    assert (gain.tree_no, gain.first_index, gain.base_position) == (2, 1, 12)


def test_a_tree_of_which_nothing_was_sent_uses_up_no_number() -> None:
    tree = GrowingTree(10, 7, GrowthSettings())
    assert not tree.commit([4])
    assert not tree.commit([5])
    tree.restart()
    assert tree.commit([])
    assert tree.num_committed == 12
    assert tree.tree_no == 1
    grow(tree, tree.root, [(3, 0.8)])
    gain = gained(tree)
    assert (gain.tree_no, gain.first_index, gain.base_position) == (1, 1, 12)


def test_restart_and_resume_send_everything_again() -> None:
    tree = GrowingTree(10, 7, GrowthSettings())
    grow(tree, 0, [(1, 0.8), (2, 0.1)])
    first = gained(tree)
    tree.restart()
    again = gained(tree)
    assert (again.tree_no, again.first_index, again.base_position) == (2, 1, 10)
    assert again.candidates.token_ids.tolist() == first.candidates.token_ids.tolist()
    tree.commit([1])
    grow(tree, tree.root, [(3, 0.8)])
    tree.resume()
    gain = gained(tree)
    assert (gain.tree_no, gain.first_index, gain.base_position) == (1, 1, 11)


def test_a_full_tree_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_tree, "LAST_TREE_INDEX", 3)
    tree = GrowingTree(10, 7, GrowthSettings())
    grow(tree, 0, [(token, 0.2) for token in range(4)])
    assert len(gained(tree).candidates) == 3
    gain = gained(tree)
    assert (gain.tree_no, gain.first_index, len(gain.candidates)) == (2, 1, 3)
    tree.commit([0])
    assert tree.tree_no == 2


# --- a node, an ordered link and a coordinator, in any interleaving ------------------------------

LAST_INDEX = 15
VOCABULARY = 4
SETTINGS = GrowthSettings(
    beam_width=2, branch_width=3, min_prob=0.02, look_ahead=4, max_unverified=12, max_local=40
)


@dataclass(frozen=True)
class Verdict:
    token_ids: tuple[int, ...]
    restart_tree_no: int


class Coordinator:
    """Takes gains as the protocol says and refuses what it forbids."""

    def __init__(self, num_committed: int) -> None:
        self.start = num_committed
        self.after_start: list[int] = []
        self.tree: ReceivedTree | None = None
        self.slow = RememberingTree()
        self.tree_no = 0
        self.num_verdicts = self.num_restarts = self.num_vertices = 0
        self.ended = 0

    def take(self, gain: Gain) -> None:
        if gain.first_index == 1:
            assert gain.tree_no == self.tree_no + 1
            self.tree_no = gain.tree_no
            offset = gain.base_position - self.start
            assert 0 <= offset <= len(self.after_start)
            root_token = ([7, *self.after_start])[offset]
            known = self.after_start[offset:]
            self.tree = ReceivedTree(gain.tree_no, gain.base_position, known, root_token)
            self.slow = RememberingTree(committed=list(known))
        assert self.tree is not None
        assert gain.tree_no == self.tree_no
        assert gain.base_position == self.tree.base_position
        self.num_vertices += len(gain.candidates)
        assert self.num_vertices <= SETTINGS.max_unverified * (self.num_verdicts + self.tree_no)
        extra = self.num_vertices // LAST_INDEX
        assert self.tree_no <= 1 + self.num_verdicts + self.num_restarts + extra
        self.tree.extend(gain.first_index, gain.candidates)
        assert self.tree.num_vertices <= LAST_INDEX
        assert self.tree.num_live <= SETTINGS.max_unverified
        columns = gain.candidates
        self.slow.vertices.extend(
            zip(
                columns.parents.tolist(),
                columns.token_ids.tolist(),
                columns.log_probs.tolist(),
                strict=True,
            )
        )
        if gain.tree_no <= self.ended:
            self.tree.end()

    def commit(self, token_ids: tuple[int, ...], *, restart: bool) -> Verdict:
        self.after_start.extend(token_ids)
        self.num_verdicts += 1
        ended = 0
        if self.tree is not None:
            if restart and not self.tree.is_dead:
                ended = self.ended = self.tree.tree_no
                self.num_restarts += 1
                self.tree.end()
            self.tree.commit(token_ids)
            self.slow.committed.extend(token_ids)
        return Verdict(token_ids, ended)

    def check(self) -> None:
        tree, slow = self.tree, self.slow
        if tree is None or tree.is_dead:
            return
        assert tree.matched == slow.matched()
        assert tree.is_full == slow.is_full()
        assert set(tree.tree) == slow.live()

    def live_texts(self) -> set[tuple[int, ...]]:
        """Token paths below the committed tokens."""
        if self.tree is None:
            return set()
        tree = self.tree.tree
        return {tokens_to(tree, index) for index in tree}


def expand_frontier(node: GrowingTree, rng: random.Random) -> None:
    for vertex in node.frontier():
        probs = rng.choice([(0.6, 0.2, 0.1), (0.9, 0.05, 0.01), (0.3, 0.3, 0.3)])
        first = rng.randrange(VOCABULARY)
        grow(node, vertex, [((first + i) % VOCABULARY, prob) for i, prob in enumerate(probs)])


def draw_tokens(node: GrowingTree, coordinator: Coordinator, rng: random.Random) -> tuple[int, ...]:
    """Often what was guessed, here or not yet, so that walks go far; then something of its own."""
    local = [tuple(tokens_of(node, vertex)) for vertex in everything(node)]
    texts = sorted(coordinator.live_texts()) + sorted(local)[:3] + sorted(in_rows(node))[:2]
    path = rng.choice(texts) if rng.random() < 0.7 else ()
    return (*path, *(rng.randrange(VOCABULARY) for _ in range(rng.choice([0, 0, 1, 2]))))


def deliver(node: GrowingTree, verdict: Verdict) -> None:
    if verdict.restart_tree_no and verdict.restart_tree_no == node.tree_no:
        node.restart()
    node.commit(verdict.token_ids)


ACTIONS = ["expand", "expand", "send", "send", "arrive", "arrive", "decide", "hear"]


@given(st.integers(0, 2**32))
def test_law1_output_and_law7_bounded_over_any_interleaving(seed: int) -> None:
    """What a coordinator keeps equals brute force, and no honest node passes a limit."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sent_tree, "LAST_TREE_INDEX", LAST_INDEX)
        node, coordinator = GrowingTree(5, 7, SETTINGS), Coordinator(5)
        up: deque[Gain] = deque()
        down: deque[Verdict] = deque()
        for _ in range(80):
            action = rng.choice(ACTIONS)
            if action == "expand":
                expand_frontier(node, rng)
            elif action == "send":
                gain = node.take_gain(rng.randint(1, 20))
                if gain is not None:
                    up.append(gain)
            elif action == "arrive" and up:
                coordinator.take(up.popleft())
            elif action == "decide":
                tokens = draw_tokens(node, coordinator, rng)
                down.append(coordinator.commit(tokens, restart=rng.random() < 0.1))
            elif action == "hear" and down:
                deliver(node, down.popleft())
            coordinator.check()
            assert node.num_unverified <= SETTINGS.max_unverified
            assert len(node) <= SETTINGS.max_local
        settle(node, coordinator, up, down)


def settle(
    node: GrowingTree, coordinator: Coordinator, up: deque[Gain], down: deque[Verdict]
) -> None:
    """When the link is empty both ends hold the same tree."""
    while up:
        coordinator.take(up.popleft())
    while down:
        deliver(node, down.popleft())
    assert node.num_committed == 5 + len(coordinator.after_start)
    gain = node.take_gain(1)
    if gain is not None:
        coordinator.take(gain)
        coordinator.check()
    sent = {tuple(tokens_of(node, v)) for v in everything(node) if is_sent(node, v)}
    if coordinator.tree_no == node.tree_no:
        assert coordinator.live_texts() == sent - {()}
    else:
        assert sent == {()}  # its next tree has not begun


def in_rows(node: GrowingTree) -> set[tuple[int, ...]]:
    """Token paths to what has not surfaced."""
    rows = ((v, node._tree[v].row) for v in everything(node))
    return {(*tokens_of(node, v), token) for v, row in rows if row for token in row.token_ids}


def everything(node: GrowingTree) -> list[int]:
    found = [node.root]
    for vertex in found:
        found.extend(child.number for child in node.vertex(vertex).children.values())
    return found
