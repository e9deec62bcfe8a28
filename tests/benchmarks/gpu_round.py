"""A whole step of the engine on a GPU, and how much of it the host holds the GPU up."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import SourceFactor, StepDone, StepEntry, VerificationBatch
from tests.benchmarks.gpu_subject import Subject
from tests.support.engine import open_session, vertices


class BusyTime:
    """How long the device went on when all was launched; a model's `while_busy`.

    What the host does before that counts as a gap, although the device has begun by then: it is
    more than the gap, never less.
    """

    def __init__(self) -> None:
        self.used_s = 0.0

    def __call__(self, is_done: Callable[[], bool]) -> None:
        launched_s = time.perf_counter()
        while not is_done():
            pass
        self.used_s += time.perf_counter() - launched_s


@dataclass(frozen=True, slots=True)
class Round:
    """A step of the engine core: all of it, and where the host works and the GPU need not."""

    time_ms: float
    gap_ms: float


def measure_round(subject: Subject, num_sessions: int, num_vertices: int) -> Round:
    """Sessions with a fresh tree each in every step, as a node's would be after a miss."""
    bench, busy = subject.bench, BusyTime()
    core = EngineCore(subject.model, time.monotonic)
    subject.model.while_busy = busy
    numbers = list(range(1, num_sessions + 1))
    max_tokens = (num_sessions + bench.num_repeats + 2) * (num_vertices + 1)
    lengths = dict.fromkeys(numbers, bench.context)
    for number in numbers:
        # texts of their own, lest a session begin with the pages of another
        prompt = [(7 * i + number) % 509 for i in range(bench.context)]
        core.handle(open_session(number, prompt, max_tokens=max_tokens, ignore_eos=True))
    for _ in numbers:
        _take(core.step(_batch(numbers, bench.context, 0)), lengths)
    times, gaps = [], []
    for tree_no in range(1, bench.num_repeats + 3):
        parents = [max(0, (i - 1) // 2) for i in range(1, num_vertices + 1)]
        for number in numbers:
            tokens = [10 + 2 * i + i % 2 for i in range(num_vertices)]
            core.handle(
                vertices(number, 1, lengths[number], tokens, parents=parents, tree_no=tree_no)
            )
        busy.used_s = 0.0
        begun_s = time.perf_counter()
        done = core.step(_batch(numbers, 256, num_vertices))
        times.append(time.perf_counter() - begun_s)
        gaps.append(times[-1] - busy.used_s)
        assert done.num_forward_rows == num_sessions * (1 + num_vertices), done.num_forward_rows
        _take(done, lengths)
    return Round(1e3 * statistics.median(times[2:]), 1e3 * statistics.median(gaps[2:]))


def _batch(sessions: Sequence[int], prefill_tokens: int, max_rows: int) -> VerificationBatch:
    return VerificationBatch(
        step_no=1,
        entries=[StepEntry(number, max_rows, [SourceFactor(1, 1.0)]) for number in sessions],
        row_price=0.0,
        ngram_hit_rates=[],
        prefill_tokens=prefill_tokens,
    )


def _take(done: StepDone, lengths: dict[int, int]) -> None:
    for result in done.results:
        lengths[result.session] += len(result.token_ids)
