"""What a level of the engine's own draft model writes for a session, where it has something to.

Of the bound rows those are expanded below which the most probability has no child yet, if the draft
model can read them; with them go the ancestors and the committed tokens that have no rows. Nothing
is written here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from coordinator.engine.messages import LevelTerms
from coordinator.engine.own_cache import OwnRows, Spread
from coordinator.engine.own_tree import NO_VERTEX, OwnTree
from coordinator.engine.session import EngineSession
from coordinator.engine.work import Work
from specedge_p2p.lm.ports import ModelInfo, Rows
from specedge_p2p.tree.binding import BoundRows
from specedge_p2p.tree.levels import Expansions, expansions, useful_share

MAX_CHAIN = 64
"""More missing committed tokens than this are written as causal rows, without a tree."""


@dataclass(slots=True)
class Drafted:
    """A session that the draft model knows."""

    session: EngineSession
    tree: OwnTree
    rows: OwnRows = field(default_factory=OwnRows)
    is_off: bool = False
    """It gave way when the cache was full, or the draft model cannot read its tokens."""

    @property
    def num_missing(self) -> int:
        """Committed tokens that have no row."""
        return len(self.session.token_ids) - self.rows.num_committed


@dataclass(frozen=True, slots=True, eq=False)
class LevelEntry:
    """One session's share of a level.

    Args:
        bound: its rows so far.
        vertices: the own tree's vertex of each of them, NO_VERTEX for rows that it does not have.
        num_new: rows that are to be expanded.
        mass: tokens that are expected of them.
        spread: None where known tokens are written as causal rows.
    """

    drafted: Drafted
    bound: BoundRows
    vertices: list[int]
    rows: Rows
    num_new: int
    mass: float
    spread: Spread | None

    @property
    def session(self) -> int:
        return self.drafted.session.number


@dataclass(frozen=True, slots=True)
class LevelPlanner:
    """Finds what one level writes for a session.

    Args:
        info: of the draft model.
        row_price: see VerificationBatch.
        terms: see LevelTerms.
    """

    info: ModelInfo
    row_price: float
    terms: LevelTerms

    def entry(self, drafted: Drafted, work: Work, room: int) -> LevelEntry | None:
        """None where nothing is worth expanding or can be.

        Args:
            drafted: the session as the draft model knows it.
            work: what it brings to the step so far.
            room: most causal rows that may be written.
        """
        bound = work.bound
        if bound is None:
            return None
        vertices = drafted.tree.vertices(bound)
        done = self._done(drafted, bound, vertices)
        found = self._choose(bound, done, work.session.node_share)
        if not found.rows:
            return None
        spread: Spread | None = None
        rows: Rows | None = None
        if drafted.num_missing > MAX_CHAIN:
            rows = self._chunk(drafted, vertices[0], room)
        else:
            spread = self._spread(drafted, bound, vertices, found.rows)
            if spread is not None:
                rows = drafted.rows.plan(work.session.number, spread, bound, vertices)
        if rows is None:
            return None
        # What a bad draft model brings is less.
        mass = found.mass * min(1.0, self.terms.factor)
        return LevelEntry(drafted, bound, vertices, rows, len(found.rows), mass, spread)

    def _choose(self, bound: BoundRows, done: set[int], node_share: float) -> Expansions:
        """The rows to expand: those with the most uncovered mass, or of a fixed tree the best."""
        terms = self.terms
        if not terms.is_fixed:
            return expansions(bound, done, terms.width, useful_share(node_share))
        rows = [row for row in range(len(bound)) if row not in done]
        rows.sort(key=lambda row: -bound.probs[row])  # stable: of equal ones the earlier row
        return Expansions(tuple(rows[: terms.width]), 0.0)

    def _done(self, drafted: Drafted, bound: BoundRows, vertices: list[int]) -> set[int]:
        """Rows that need not be expanded or cannot be, with what lies below the latter.

        A row that the n-gram guess alone has cannot: the tree has no probability for it. One with
        less left uncovered than a row costs need not: no child of it could become a row.
        """
        session, tree = drafted.session, drafted.tree
        deepest = min(session.max_depth - 1, self.info.max_context - len(session.token_ids))
        done: set[int] = set()
        barred: set[int] = set()
        columns = zip(
            bound.token_ids,
            bound.parents,
            bound.depths,
            bound.sources,
            bound.uncovered(),
            vertices,
            strict=True,
        )
        for row, (token_id, parent, depth, source, uncovered, vertex) in enumerate(columns):
            is_unknown = vertex == NO_VERTEX and not source
            is_beyond = depth > deepest or token_id >= self.info.vocab_size
            if is_unknown or is_beyond or parent in barred:
                barred.add(row)
            elif uncovered >= self.row_price and not tree.is_expanded(vertex):
                continue
            done.add(row)
        return done

    def _chunk(self, drafted: Drafted, root: int, room: int) -> Rows | None:
        """A chunk of known tokens; the last one brings the root's children."""
        token_ids, first = drafted.session.token_ids, drafted.rows.num_prefix
        chunk = token_ids[first : first + room]
        if not chunk or not self._can_read(drafted, chunk):
            return None
        is_last = first + len(chunk) == len(token_ids)
        is_wanted = is_last and not drafted.tree.is_expanded(root)
        return Rows(
            sequence=drafted.session.number,
            token_ids=np.array(chunk, dtype=np.int32),
            positions=np.arange(first, first + len(chunk), dtype=np.int32),
            visible=None,
            num_outputs=int(is_wanted),
        )

    def _spread(
        self, drafted: Drafted, bound: BoundRows, vertices: list[int], chosen: Sequence[int]
    ) -> Spread | None:
        """The chosen rows, with the ancestors and committed tokens that have no rows yet."""
        tree, rows = drafted.tree, drafted.rows
        chain = tuple(drafted.session.token_ids[rows.num_committed :])
        if not self._can_read(drafted, chain):
            return None
        wanted: set[int] = set()
        for chosen_row in chosen:
            row = chosen_row
            while row > 0 and row not in wanted and not rows.has_row(vertices[row]):
                wanted.add(row)
                row = bound.parents[row]
        if not tree.is_expanded(vertices[0]):
            wanted.add(0)
        new = tuple(row for row in sorted(wanted) if not tree.is_expanded(vertices[row]))
        known = tuple(row for row in sorted(wanted) if tree.is_expanded(vertices[row]))
        return Spread(chain, known, new)

    def _can_read(self, drafted: Drafted, token_ids: Sequence[int]) -> bool:
        if max(token_ids, default=0) >= self.info.vocab_size:
            drafted.is_off = True
        return not drafted.is_off
