"""`python -m tests.benchmarks.binding`: what the engine does between two steps, without a model.

Sessions hold trees of live vertices that grew best first, wide, as nodes grow them. A round binds
every session's rows, follows a verdict in every tree and lets the trees grow again. The gap between
two steps holds the first two; the third happens on arrival. The same rows are bound by the plain
way, which merges and pushes every child of every row. Times are of the processor, so that what else
the machine does counts little.
"""

import heapq
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specedge_p2p.tree.binding import BindLimits, BoundRows, SourceTree, bind
from specedge_p2p.tree.ngram import NgramGuess
from specedge_p2p.tree.received_tree import ReceivedTree
from tests.support.plain_binding import plain_bind
from tests.support.trees import columns

NUM_CHILDREN = 8
LEAST_PROB = 0.003
NUM_LONG = 12
"""Tokens of a session's future that are drawn at a time."""

Bind = Callable[[int, Sequence[SourceTree], NgramGuess, float, BindLimits], BoundRows]


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured: `num_drafts` draft models, one tree of each in every session."""

    num_sessions: int
    num_live: int
    num_drafts: int = 1
    row_price: float = 0.2

    def __str__(self) -> str:
        trees = "" if self.num_drafts == 1 else f", {self.num_drafts} drafts"
        return f"{self.num_sessions} sessions, {self.num_live} live{trees}"


SIZES = (Size(8, 32), Size(24, 256), Size(24, 256, num_drafts=2))


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the rounds, for all sessions together."""

    bind_ms: float
    plain_bind_ms: float
    commit_ms: float
    arrival_us: float
    """Of one vertex."""
    rows_per_session: float


@dataclass(frozen=True, slots=True)
class Sent:
    """One proposal of a tree: (parent, token, log probability) of its vertices."""

    tree_no: int
    first_index: int
    base_position: int
    vertices: list[tuple[int, int, float]]


class GrownSession:
    """One session: what comes next is drawn; draft models guess it with errors of their own."""

    def __init__(self, size: Size, number: int) -> None:
        self._size = size
        self._rng = np.random.default_rng(number)
        self._arrival = 0
        self.num_grown = 0
        self.root_token = 0
        self.num_tokens = 1
        self.sent: list[Sent] = []
        """What has grown; for whoever takes it out."""
        self.trees = [ReceivedTree(1, 1, [], 0) for _ in range(size.num_drafts)]
        self.grow()

    def sources(self) -> list[SourceTree]:
        return [
            SourceTree(at + 1, tree, 0.9, draft=at, quality=0.7 + 0.1 * at)
            for at, tree in enumerate(self.trees)
        ]

    def guess(self) -> NgramGuess:
        """Every third session repeats itself, now and then as the trees say."""
        if self._rng.random() < 0.67:
            return NgramGuess()
        return NgramGuess(3, tuple(self._rng.integers(0, NUM_CHILDREN, 8).tolist()))

    def verdict(self) -> list[int]:
        """The path that the trees hold likely, cut after a few tokens, and one of the target's."""
        vertex = self.trees[0].tree.root_vertex
        tokens = []
        for _ in range(int(self._rng.integers(0, 4))):
            if not vertex.ranked:
                break
            vertex = vertex.ranked[0]
            tokens.append(vertex.token_id)
        return [*tokens, int(self._rng.choice(NUM_CHILDREN, p=CHILD_SHARES))]

    def commit(self, token_ids: list[int]) -> None:
        for tree in self.trees:
            tree.commit(token_ids)
        self.root_token = token_ids[-1]
        self.num_tokens += len(token_ids)

    def grow(self) -> float:
        """Fill the trees; seconds that taking the vertices in took."""
        taken_s = 0.0
        for at, tree in enumerate(self.trees):
            if not tree.is_full:
                tree = ReceivedTree(tree.tree_no + 1, self.num_tokens, [], self.root_token)
                self.trees[at] = tree
            for part in self._growth(tree):
                self._arrival += 1
                candidates = columns(part)
                self.sent.append(Sent(tree.tree_no, tree.next_index, tree.base_position, part))
                begun = time.process_time()
                tree.extend(tree.next_index, candidates, self._arrival)
                self.num_grown += len(part)
                taken_s += time.process_time() - begun
        return taken_s

    def _growth(self, tree: ReceivedTree) -> list[list[tuple[int, int, float]]]:
        """Levels of 16 expansions, best first, each sent as one proposal."""
        root = tree.tree.root_vertex
        live = [root, *(tree.tree.vertex(index) for index in tree.tree)]
        frontier = [(root.total - v.total, v.index) for v in live if not v.children]
        heapq.heapify(frontier)
        num_live, next_index = tree.num_live, tree.next_index
        parts = []
        while frontier and num_live < self._size.num_live:
            level = [heapq.heappop(frontier) for _ in range(min(16, len(frontier)))]
            found = [
                (cost + step / 16, parent, token_id, step / 16)
                for cost, parent in level
                for token_id, step in self._children()
                if cost + step / 16 < -np.log(LEAST_PROB)
            ]
            found.sort()
            found = found[: self._size.num_live - num_live]
            part = []
            for index, (cost, parent, token_id, step) in enumerate(found, next_index):
                part.append((parent, token_id, -step))
                heapq.heappush(frontier, (cost, index))
            num_live, next_index = num_live + len(found), next_index + len(found)
            if part:
                parts.append(part)
        return parts

    def _children(self) -> list[tuple[int, int]]:
        """(token, -log P in 1/16 nat): one likely child and some that are not."""
        shares = self._rng.dirichlet(CHILD_SHARES * 3) + 1e-4
        steps = np.minimum(255, np.round(-16 * np.log(np.minimum(1, shares)))).astype(int)
        return list(enumerate(steps.tolist()))


CHILD_SHARES = np.array([0.6, 0.15, 0.08, 0.06, 0.04, 0.03, 0.02, 0.02])


def measure(size: Size, num_rounds: int) -> Figures:
    sessions = [GrownSession(size, number) for number in range(size.num_sessions)]
    limits = BindLimits(size.row_price, 32, 64)
    fast, plain, commits, arrivals, rows = [], [], [], [], []
    for _ in range(num_rounds):
        guesses = [session.guess() for session in sessions]
        plain.append(_bind_all(plain_bind, sessions, guesses, limits)[0])
        seconds, num_rows = _bind_all(bind, sessions, guesses, limits)
        fast.append(seconds)
        rows.append(num_rows / size.num_sessions)
        for session in sessions:
            session.sent.clear()
        verdicts = [session.verdict() for session in sessions]
        begun = time.process_time()
        for session, token_ids in zip(sessions, verdicts, strict=True):
            session.commit(token_ids)
        commits.append(time.process_time() - begun)
        num_before = sum(session.num_grown for session in sessions)
        taken_s = sum(session.grow() for session in sessions)
        num_new = sum(session.num_grown for session in sessions) - num_before
        arrivals.append(taken_s / max(1, num_new))
    return Figures(
        bind_ms=1000 * statistics.median(fast),
        plain_bind_ms=1000 * statistics.median(plain),
        commit_ms=1000 * statistics.median(commits),
        arrival_us=1e6 * statistics.median(arrivals),
        rows_per_session=statistics.mean(rows),
    )


def _bind_all(
    binder: Bind,
    sessions: Sequence[GrownSession],
    guesses: Sequence[NgramGuess],
    limits: BindLimits,
) -> tuple[float, int]:
    num_rows = 0
    begun = time.process_time()
    for session, guess in zip(sessions, guesses, strict=True):
        bound = binder(session.root_token, session.sources(), guess, 0.6, limits)
        num_rows += len(bound) - 1
    return time.process_time() - begun, num_rows


def run(sizes: Sequence[Size] = SIZES, num_rounds: int = 40) -> list[Figures]:
    """Measure and print; medians in ms for all sessions together."""
    found = []
    print(
        "in ms for all sessions: bind (plain way, ratio) + follow verdicts; later: take vertices in"
    )
    for size in sizes:
        figures = measure(size, num_rounds)
        print(
            f"{size}: {figures.bind_ms:.2f} ({figures.plain_bind_ms:.2f}, "
            f"{figures.plain_bind_ms / figures.bind_ms:.1f}x) + {figures.commit_ms:.2f}; "
            f"{figures.arrival_us:.1f} us a vertex; {figures.rows_per_session:.1f} rows a session"
        )
        found.append(figures)
    return found


if __name__ == "__main__":
    run()
