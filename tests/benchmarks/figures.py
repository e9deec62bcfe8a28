"""From what clients saw to rows, paired ratios and checks. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import harmonic_mean, mean
from typing import Literal

from tests.benchmarks.clients import Served

Metric = Literal["throughput", "itl", "p95_gap", "p95_gap_ms"]

MOST_LATE = 0.01
"""A run in which a larger share of the padded forwards ended late says nothing, and is refused."""


@dataclass(frozen=True, slots=True)
class Row:
    """One serving. Times and rates are emulated ones: real ones divided by the stretch.

    Args:
        tokens_per_s: of all sessions together, from each job's first burst to its last.
        itl_ms: mean time per token of one session.
        p95_gap_ms: of the waits between two bursts of a stream.
        tokens_per_engine_ms: committed tokens per millisecond in engine steps.
        share_by_nodes, share_by_ngram: of the tokens after each job's first.
        late_share: of the padded forwards, engine and nodes together, the larger of the two.
        used_share: of the engine's padded time that was really used.
        drafts: draft models of the nodes.
        num_runs: of which these figures are the means.
        spread: largest less smallest tokens per second of those runs, as a share of the mean.
    """

    name: str
    num_sessions: int
    num_nodes: int
    temperature: float
    stretch: float
    num_tokens: int
    tokens_per_s: float
    itl_ms: float
    p95_gap_ms: float
    tokens_per_engine_ms: float
    share_by_nodes: float
    share_by_ngram: float
    late_share: float
    used_share: float
    drafts: tuple[str, ...] = ()
    num_runs: int = 1
    spread: float = 0.0


MEANS = (
    "itl_ms",
    "p95_gap_ms",
    "tokens_per_engine_ms",
    "share_by_nodes",
    "share_by_ngram",
    "used_share",
)


@dataclass(frozen=True, slots=True)
class Run:
    """A row and the jobs behind it, for pairing. Decode times are emulated seconds."""

    row: Row
    decode_s: Mapping[int, float]
    num_tokens: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A bound that must hold.

    Args:
        over: name of the serving that is judged; of several the best one.
        against: names of the alternatives; the best of them counts, so while one is missing
            nothing is known yet. Empty for an absolute bound.
        at_least: whether the value must reach the bound or stay below it.
    """

    name: str
    over: tuple[str, ...]
    against: tuple[str, ...]
    bound: float
    metric: Metric = "throughput"
    at_least: bool = True


@dataclass(frozen=True, slots=True)
class ChoiceSpec:
    """Nodes that may choose take the draft model that measures better, everywhere.

    Args:
        name: of the check.
        cases: per engine, names of a serving with nodes that choose, and of those with each model.
    """

    name: str
    cases: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for chooser, each in self.cases for name in (chooser, *each))


@dataclass(frozen=True, slots=True)
class Check:
    """A value beside its bound.

    Args:
        holds: whether the value keeps the bound; never where nothing can be said.
        spread: standard error of a throughput ratio, from leaving out one job at a time.
        note: what was compared, and what was missing or late.
        unsaid: why nothing can be said: "partial" before all alternatives were run, "refused"
            where forwards of what was compared ended late.
    """

    name: str
    value: float
    bound: float
    holds: bool
    spread: float = 0.0
    note: str = ""
    unsaid: Literal["", "partial", "refused"] = ""

    @property
    def verdict(self) -> str:
        return self.unsaid or ("holds" if self.holds else "fails")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of all; 0 without any."""
    if not values:
        return 0.0
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def tokens_per_s(num_sessions: int, runs: Sequence[tuple[int, float]]) -> float:
    """Of all sessions, from (tokens after the first burst, emulated seconds) per job."""
    return num_sessions * sum(n for n, _ in runs) / sum(s for _, s in runs)


def run_of(row: Row, served: Sequence[Served], stretch: float) -> Run:
    return Run(
        row,
        {s.job.number: s.decode_s / stretch for s in served},
        {s.job.number: s.num_tokens for s in served},
    )


def pooled(runs: Sequence[Run]) -> Run:
    """Several runs of one serving as one: every job takes its mean time, so that ratios of jobs are
    those of rates.

    Runs with late forwards count only where there is no other, and then the verdict is refused;
    runs of fewer jobs (`--quick`) only where there is none of more.
    """
    num_jobs = max(len(run.decode_s) for run in runs)
    whole = [run for run in runs if len(run.decode_s) == num_jobs]
    kept = [run for run in whole if run.row.late_share <= MOST_LATE] or whole
    rows = [run.row for run in kept]
    rates = [row.tokens_per_s for row in rows]
    means = {name: mean(getattr(row, name) for row in rows) for name in MEANS}
    rate = harmonic_mean(rates)
    row = replace(
        rows[0],
        **means,
        tokens_per_s=rate,
        stretch=max(row.stretch for row in rows),
        late_share=max(row.late_share for row in rows),
        drafts=tuple(sorted({draft for row in rows for draft in row.drafts})),
        num_runs=len(rows),
        spread=(max(rates) - min(rates)) / rate,
    )
    decode_s = {job: mean(run.decode_s[job] for run in kept) for job in kept[0].decode_s}
    return Run(row, decode_s, kept[0].num_tokens)


def ratio(over: Run, against: Run) -> tuple[float, float]:
    """Throughput ratio over the jobs that both have served, and its jackknife standard error."""
    jobs = sorted(over.decode_s.keys() & against.decode_s.keys())
    scale = over.row.num_sessions / against.row.num_sessions
    whole = _ratio(over, against, jobs) * scale
    parts = [_ratio(over, against, [j for j in jobs if j != left]) * scale for left in jobs]
    middle = mean(parts)
    variance = (len(jobs) - 1) / len(jobs) * sum((part - middle) ** 2 for part in parts)
    return whole, math.sqrt(variance)


def _ratio(over: Run, against: Run, jobs: Sequence[int]) -> float:
    return sum(against.decode_s[j] for j in jobs) / sum(over.decode_s[j] for j in jobs)


def judge(spec: CheckSpec | ChoiceSpec, runs: Mapping[str, Run]) -> Check | None:
    """None when none of what it compares was run.

    What is missing or late takes the verdict from a check, not its value: a benchmark that is under
    way shows where it stands.
    """
    if isinstance(spec, ChoiceSpec):
        check, names = _judge_choice(spec, runs), spec.names
    else:
        check, names = _judge_bound(spec, runs), (*spec.over, *spec.against)
    return None if check is None else _as_far_as_known(check, names, runs)


def _as_far_as_known(check: Check, names: Sequence[str], runs: Mapping[str, Run]) -> Check:
    """The check without its verdict where a run is missing or to be refused."""
    missing = [name for name in names if name not in runs]
    late = [n for n in names if n in runs and runs[n].row.late_share > MOST_LATE]
    if missing:
        note = f"{check.note}; not run yet: {', '.join(missing)}"
        check = replace(check, holds=False, note=note, unsaid="partial")
    if late:
        shares = ", ".join(f"{name} {runs[name].row.late_share:.1%}" for name in late)
        note = f"{check.note}; refused, forwards ended late: {shares}"
        check = replace(check, holds=False, note=note, unsaid="refused")
    return check


def _judge_bound(spec: CheckSpec, runs: Mapping[str, Run]) -> Check | None:
    over = [runs[name] for name in spec.over if name in runs]
    against = [runs[name] for name in spec.against if name in runs]
    if not over or (spec.against and not against):
        return None
    best = max(over, key=lambda run: run.row.tokens_per_s)
    spread, note = 0.0, best.row.name
    if spec.metric == "p95_gap_ms":
        value = best.row.p95_gap_ms
    else:
        rival = max(against, key=lambda run: run.row.tokens_per_s)
        note = f"{best.row.name} against {rival.row.name}"
        if spec.metric == "throughput":
            value, spread = ratio(best, rival)
        elif spec.metric == "itl":
            value = best.row.itl_ms / rival.row.itl_ms
        else:
            value = best.row.p95_gap_ms / rival.row.p95_gap_ms
    holds = value >= spec.bound if spec.at_least else value <= spec.bound
    return Check(spec.name, value, spec.bound, holds, spread, note)


def _judge_choice(spec: ChoiceSpec, runs: Mapping[str, Run]) -> Check | None:
    """The number of engines at which what was chosen is what measured best."""
    notes, num_right = [], 0
    for chooser, alternatives in spec.cases:
        if chooser not in runs or any(name not in runs for name in alternatives):
            return None
        best = max((runs[name].row for name in alternatives), key=lambda row: row.tokens_per_s)
        chosen = runs[chooser].row.drafts
        num_right += chosen == best.drafts
        notes.append(f"{chooser} took {', '.join(chosen)}")
    bound = len(spec.cases)
    return Check(spec.name, num_right, bound, num_right == bound, note="; ".join(notes))
