"""What this machine can do, measured at join: the time of one level by its width."""

import os
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from node.draft_cache import DraftCache, Growth
from node.level_times import LevelSample, LevelShape, LevelTimes
from specedge_p2p.lm.ports import LanguageModel, Rows, SamplingParams

WIDTHS = (1, 4, 16, 64)
_LAST = 19
"""The lowest of the usual priorities."""
_TRIES, _TRY_AGAIN_S = 10, 0.1
_CONTEXT = 64
_LONG_CONTEXT = 512
_SHARED = ((4, 8), (8, 4))
"""(sessions, vertices of each): what several sessions cost beyond their rows."""
_BRANCH_WIDTH = 8


@dataclass(frozen=True, slots=True)
class LevelTime:
    """Median time of one forward that expands `width` vertices of one session."""

    width: int
    level_time_s: float


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was measured.

    Args:
        levels: of one session, narrowest first.
        more: levels of several sessions, and of one with a longer context.
    """

    levels: tuple[LevelTime, ...]
    more: tuple[LevelSample, ...] = ()

    def level_time_s(self, width: int) -> float:
        """The time at the nearest measured width that is not smaller, else at the widest."""
        for level in self.levels:
            if level.width >= width:
                return level.level_time_s
        return self.levels[-1].level_time_s

    def level_times(self) -> LevelTimes:
        """A model of level times that begins with these measurements."""
        shapes = ((LevelShape(lv.width, 1, _CONTEXT), lv.level_time_s) for lv in self.levels)
        return LevelTimes([*(LevelSample(shape, time_s) for shape, time_s in shapes), *self.more])

    def __str__(self) -> str:
        return ", ".join(
            f"{level.width} in {level.level_time_s * 1000:.1f} ms" for level in self.levels
        )


def yield_to_others(autogroup: Path = Path("/proc/self/autogroup")) -> None:
    """Let everything else on this machine go first, threads started later included.

    Linux may share its processors out among sessions before it looks at the priorities within one
    (sched(7), autogroup). A process that leads a session, as services do, lowers that session too;
    any other leaves it alone, because the rest of it belongs to somebody else.
    """
    if not hasattr(os, "setpriority"):  # Windows
        return
    os.setpriority(os.PRIO_PROCESS, 0, _LAST)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # a kernel without such groups
            _write_patiently(autogroup, str(_LAST))


def _write_patiently(autogroup: Path, text: str) -> None:
    """Linux takes one such change every tenth of a second, of all users together."""
    for _ in range(_TRIES):
        try:
            autogroup.write_text(text, "ascii")
        except BlockingIOError:
            time.sleep(_TRY_AGAIN_S)
        else:
            return


def limit_threads(threads: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Bound the threads of the numeric libraries; works only before they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environ[name] = str(threads)
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def has_cuda_device(root: Path = Path("/")) -> bool:
    """Whether the machine seems to have an NVIDIA device; torch knows, but takes seconds to ask.

    WSL2 shows no device, only the driver that Windows lends it.
    """
    has_device = any((root / "dev").glob("nvidia[0-9]*"))
    return has_device or (root / "usr" / "lib" / "wsl" / "lib" / "libcuda.so.1").exists()


def benchmark(
    model: LanguageModel,
    clock: Callable[[], float],
    repeats: int = 5,
    widths: tuple[int, ...] = WIDTHS,
) -> Benchmark:
    """Time levels; leaves the model as it was. Takes about a second.

    Args:
        model: the loaded draft model.
        clock: seconds, rising.
        repeats: forwards per shape, after one that is not counted.
        widths: vertices per level of one session below a short context.
    """
    probe = _Probe(model, clock, repeats)
    context = min(_CONTEXT, model.info.max_context - 2)
    levels = [LevelTime(width, probe.level_time_s(1, width, context)) for width in widths]
    more = [(num, width, context) for num, width in _SHARED]
    if model.info.max_context > 2 * _LONG_CONTEXT:
        more.append((1, WIDTHS[-2], _LONG_CONTEXT))
    samples = []
    for num_sessions, width, num_context in more:
        if model.num_free_rows < 2 * num_sessions * (width + num_context):
            continue  # a small cache takes fewer sessions anyway
        shape = LevelShape(width * num_sessions, num_sessions, num_context * num_sessions)
        samples.append(LevelSample(shape, probe.level_time_s(num_sessions, width, num_context)))
    return Benchmark(tuple(levels), tuple(samples))


@dataclass(frozen=True, slots=True)
class _Probe:
    model: LanguageModel
    clock: Callable[[], float]
    repeats: int

    def level_time_s(self, num_sessions: int, width: int, num_context: int) -> float:
        """Median time of a level that expands `width` vertices of each session."""
        sequences = [-1 - i for i in range(num_sessions)]  # sessions are numbered from 0
        vocab_size = self.model.info.vocab_size
        token_ids = np.arange(num_context, dtype=np.int32) % vocab_size
        positions = np.arange(num_context, dtype=np.int32)
        try:
            for sequence in sequences:
                self.model.add_sequence(sequence, SamplingParams(temperature=0), bytes(16))
                prompt = Rows(sequence, token_ids, positions, None, 1)
                self.model.expand([prompt], _BRANCH_WIDTH)
            growths = [Growth(i + 1, 0, i % vocab_size, num_context) for i in range(width)]
            batch = [DraftCache().plan(sequence, growths) for sequence in sequences]
            times = [self._time(batch) for _ in range(self.repeats + 1)]
        finally:
            for sequence in sequences:
                self.model.drop_sequence(sequence)
        return median(times[1:])

    def _time(self, batch: list[Rows]) -> float:
        started = self.clock()
        self.model.expand(batch, _BRANCH_WIDTH)
        elapsed = self.clock() - started
        for rows in batch:
            self.model.compact(rows.sequence, (), ())
        return elapsed
