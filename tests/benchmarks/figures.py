"""What a benchmark run found: samples, their medians, ratios and checks. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal

Mode = Literal["plain", "n-gram", "nodes"]
MODES: tuple[Mode, ...] = ("plain", "n-gram", "nodes")
WITHOUT_NODES: tuple[Mode, ...] = ("plain", "n-gram")


@dataclass(frozen=True, slots=True)
class Cell:
    """One situation, in which all modes are compared."""

    step_floor_s: float
    round_trip_ms: float
    num_sessions: int
    temperature: float

    @property
    def name(self) -> str:
        return (
            f"floor{self.step_floor_s * 1000:g}-rtt{self.round_trip_ms:g}"
            f"-s{self.num_sessions}-t{self.temperature:g}"
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One batch of sessions served in one mode."""

    num_tokens: int
    num_first_tokens: int
    """Of `num_tokens` those that came from a prefill, one per session."""
    num_rounds: int
    num_accepted: int
    wall_s: float
    engine_s: float
    num_node_bytes: int

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s


@dataclass(frozen=True, slots=True)
class Row:
    """One mode in one cell: medians over its samples.

    Args:
        spread: largest minus smallest tokens_per_s, over the median.
        ratio: median over the repeats of tokens_per_s over that of the best mode without nodes in
            the same repeat; None for the modes without nodes.
    """

    step_floor_s: float
    round_trip_ms: float
    num_sessions: int
    temperature: float
    mode: Mode
    num_samples: int
    tokens_per_s: float
    spread: float
    ratio: float | None
    acceptance_length: float
    share_accepted: float
    engine_busy: float
    node_bytes_per_round: float


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    value: float
    bound: float
    holds: bool


def rows_of(cell: Cell, samples: dict[Mode, list[Sample]]) -> list[Row]:
    """One row per mode that has samples; sample i of every mode is from repeat i."""
    ratios = _ratios(samples)
    return [_row(cell, mode, samples[mode], ratios) for mode in MODES if samples.get(mode)]


def _row(cell: Cell, mode: Mode, samples: Sequence[Sample], ratios: Sequence[float]) -> Row:
    speeds = [sample.tokens_per_s for sample in samples]
    return Row(
        **asdict(cell),
        mode=mode,
        num_samples=len(samples),
        tokens_per_s=median(speeds),
        spread=(max(speeds) - min(speeds)) / median(speeds),
        ratio=median(ratios) if mode == "nodes" and ratios else None,
        acceptance_length=median(_per(s.num_tokens - s.num_first_tokens, s) for s in samples),
        share_accepted=median(s.num_accepted / max(1, s.num_tokens) for s in samples),
        engine_busy=median(min(1.0, s.engine_s / s.wall_s) for s in samples),
        node_bytes_per_round=median(_per(s.num_node_bytes, s) for s in samples),
    )


def _ratios(samples: dict[Mode, list[Sample]]) -> list[float]:
    others = [samples[mode] for mode in WITHOUT_NODES if samples.get(mode)]
    if not others:
        return []
    pairs = zip(samples.get("nodes", []), *others, strict=False)
    return [s.tokens_per_s / max(o.tokens_per_s for o in rest) for s, *rest in pairs]


def _per(number: float, sample: Sample) -> float:
    return number / max(1, sample.num_rounds)


def checks_of(rows: Sequence[Row]) -> list[Check]:
    """What must hold where these cells were run."""
    checks = []
    for row in rows:
        if row.mode != "nodes" or row.round_trip_ms or row.temperature == 0:
            continue
        where = f"{row.num_sessions} sessions, 0 ms, T={row.temperature:g}"
        if row.step_floor_s:
            checks.append(_at_least(f"ratio, padded steps, {where}", row.ratio or 0.0, 1.0))
        least = 0.4 if row.step_floor_s else 0.1
        steps = "padded" if row.step_floor_s else "bare"
        checks.append(
            _at_least(f"share accepted, {steps} steps, {where}", row.share_accepted, least)
        )
    return checks


def _at_least(name: str, value: float, bound: float) -> Check:
    return Check(name, value, bound, value >= bound)
