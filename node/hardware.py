"""What this machine can do, measured at join: the time of one level by its width."""

import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from node.draft_cache import DraftCache, Growth
from specedge_p2p.lm.ports import LanguageModel, Rows, SamplingParams

WIDTHS = (1, 4, 16, 64)
_SEQUENCE = -1
_CONTEXT = 64
_BRANCH_WIDTH = 8


@dataclass(frozen=True, slots=True)
class LevelTime:
    """Median time of one forward that expands `width` vertices of one session."""

    width: int
    level_time_s: float


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Level times, narrowest first."""

    levels: tuple[LevelTime, ...]

    def level_time_s(self, width: int) -> float:
        """The time at the nearest measured width that is not smaller, else at the widest."""
        for level in self.levels:
            if level.width >= width:
                return level.level_time_s
        return self.levels[-1].level_time_s

    def __str__(self) -> str:
        return ", ".join(
            f"{level.width} in {level.level_time_s * 1000:.1f} ms" for level in self.levels
        )


def limit_threads(threads: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Bound the threads of the numeric libraries; works only before they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environ[name] = str(threads)
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def has_cuda_device(root: Path = Path("/")) -> bool:
    """Whether the machine shows an NVIDIA device; asked without torch, which takes seconds."""
    return (root / "dev" / "nvidia0").exists()


def benchmark(
    model: LanguageModel,
    clock: Callable[[], float],
    repeats: int = 5,
    widths: tuple[int, ...] = WIDTHS,
) -> Benchmark:
    """Time levels below a short context; leaves the model as it was. Takes about a second.

    Args:
        model: the loaded draft model.
        clock: seconds, rising.
        repeats: forwards per width, after one that is not counted.
        widths: vertices per level.
    """
    model.add_sequence(_SEQUENCE, SamplingParams(temperature=0), bytes(16))
    try:
        num_context = min(_CONTEXT, model.info.max_context - 2)
        token_ids = np.arange(num_context, dtype=np.int32) % model.info.vocab_size
        positions = np.arange(num_context, dtype=np.int32)
        model.expand([Rows(_SEQUENCE, token_ids, positions, None, 1)], _BRANCH_WIDTH)
        levels = []
        for width in widths:
            times = [_time_level(model, clock, width, num_context) for _ in range(repeats + 1)]
            levels.append(LevelTime(width, median(times[1:])))
    finally:
        model.drop_sequence(_SEQUENCE)
    return Benchmark(tuple(levels))


def _time_level(
    model: LanguageModel, clock: Callable[[], float], width: int, position: int
) -> float:
    vocab_size = model.info.vocab_size
    growths = [Growth(i + 1, 0, i % vocab_size, position) for i in range(width)]
    rows = DraftCache().plan(_SEQUENCE, growths)
    started = clock()
    model.expand([rows], _BRANCH_WIDTH)
    elapsed = clock() - started
    model.compact(_SEQUENCE, (), ())
    return elapsed
