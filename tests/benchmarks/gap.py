"""What the engine does between two forwards: the real core around a model that takes no time.

Sessions hold trees as `binding.py` grows them; what is committed is drawn. Messages come and go as
the bytes that they are between the coordinator and an engine's process. Proposals are taken in
while the device works, so they are no part of the gap.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.engine.core import EngineCore
from coordinator.engine.framing import PREFIX_BYTES, decode_to_engine, encode
from coordinator.engine.messages import (
    AddVertices,
    OpenSession,
    SourceFactor,
    StepDone,
    StepEntry,
    VerificationBatch,
)
from specedge_p2p.lm.ports import CacheInfo, Children, ModelInfo, Rows, SamplingParams, TokenIds
from specedge_p2p.lm.prefix import PageName
from specedge_p2p.noise import NoiseKey
from specedge_p2p.wire.columns import pack_log_probs, pack_parents, pack_tokens
from tests.benchmarks.binding import CHILD_SHARES, NUM_CHILDREN, GrownSession, Size
from tests.support.trees import columns

MAX_CONTEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class Gap:
    """What lay between two forwards of the engine.

    Args:
        median_ms, p95_ms: over all steps, of processor time.
        num_live: live vertices of a session when a step begins.
        rows_per_session: that a step verified.
    """

    num_sessions: int
    median_ms: float
    p95_ms: float
    num_live: float
    rows_per_session: float


class InstantTarget:
    """Draws what it chooses, and keeps no rows but their number."""

    info = ModelInfo("instant", NUM_CHILDREN, MAX_CONTEXT, (), "float32", b"instant")
    cache = CacheInfo(1 << 40)
    num_free_rows = 1 << 40

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._prefix: dict[int, int] = {}
        self._tail: dict[int, int] = {}
        self.spent_s = 0.0

    def add_sequence(self, sequence: int, sampling: SamplingParams, key: NoiseKey) -> None:
        self._prefix[sequence] = self._tail[sequence] = 0

    def drop_sequence(self, sequence: int) -> None:
        self._prefix.pop(sequence, None)
        self._tail.pop(sequence, None)

    def share_prefix(self, sequence: int, names: Sequence[PageName]) -> None:
        """Nothing is shared."""

    def adopt_prefix(self, sequence: int, names: Sequence[PageName]) -> int:
        return 0

    def num_prefix_rows(self, sequence: int) -> int:
        return self._prefix[sequence]

    def num_tail_rows(self, sequence: int) -> int:
        return self._tail[sequence]

    def compact(self, sequence: int, commit: Sequence[int], keep: Sequence[int] = ()) -> None:
        self._prefix[sequence] += len(commit)
        self._tail[sequence] = len(keep)

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        begun_s = time.thread_time()
        chosen = []
        for rows in batch:
            kind = self._prefix if rows.visible is None else self._tail
            kind[rows.sequence] += len(rows.token_ids)
            drawn = self._rng.choice(NUM_CHILDREN, rows.num_outputs, p=CHILD_SHARES)
            chosen.append(drawn.astype(np.int32))
        self.spent_s += time.thread_time() - begun_s
        return chosen

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        raise NotImplementedError("a target does not draft")


def measure_gap(size: Size, num_steps: int) -> Gap:
    """`size.num_sessions` sessions with one tree each, after one step that reads the prompts."""
    target = InstantTarget(1)
    core = EngineCore(target, time.thread_time)
    sessions = [GrownSession(size, number) for number in range(size.num_sessions)]
    for number, session in enumerate(sessions):
        core.handle(OpenSession(number, [0], 1, MAX_CONTEXT - 1, SamplingParams(), bytes(16)))
        _propose(core, number, session)
    gaps_ms, rows, live = [], [], []
    for step_no in range(num_steps + 1):
        live += [s.num_live(1) for n in range(len(sessions)) if (s := core.session(n))]
        gap_s, done = _step(core, target, step_no, size)
        if step_no:
            gaps_ms.append(1000 * gap_s)
            rows += [result.num_rows for result in done.results]
        else:
            live.clear()
        for session, result in zip(sessions, done.results, strict=True):
            session.commit(list(result.token_ids))
            session.grow()
            _propose(core, result.session, session)
    gaps_ms.sort()
    return Gap(
        num_sessions=size.num_sessions,
        median_ms=statistics.median(gaps_ms),
        p95_ms=gaps_ms[int(0.95 * (len(gaps_ms) - 1))],
        num_live=statistics.mean(live),
        rows_per_session=statistics.mean(rows),
    )


def _step(
    core: EngineCore, target: InstantTarget, step_no: int, size: Size
) -> tuple[float, StepDone]:
    factor = [SourceFactor(1, 0.9, 1, 0.7)]
    entries = [StepEntry(number, 32, factor) for number in range(size.num_sessions)]
    frame = encode(
        VerificationBatch(step_no, entries, size.row_price, [0.6, 0.5, 0.3], 4096, 0, None)
    )
    before_s, begun_s = target.spent_s, time.thread_time()
    (batch,) = decode_to_engine(frame[PREFIX_BYTES:])
    core.handle(batch)
    *_, done = core.step_next()
    assert isinstance(done, StepDone)
    encode(done)
    return time.thread_time() - begun_s - (target.spent_s - before_s), done


def _propose(core: EngineCore, number: int, session: GrownSession) -> None:
    for part in session.sent:
        candidates = columns(part.vertices)
        core.handle(
            AddVertices(
                session=number,
                source=1,
                tree_no=part.tree_no,
                first_index=part.first_index,
                base_position=part.base_position,
                token_ids=pack_tokens(candidates.token_ids),
                parents=pack_parents(candidates.parents),
                log_probs=pack_log_probs(candidates.log_probs),
            )
        )
    session.sent.clear()
