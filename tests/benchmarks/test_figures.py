"""The arithmetic between what clients saw and what the table says."""

import math
from dataclasses import replace

import pytest

from tests.benchmarks.clients import Job, Served
from tests.benchmarks.figures import (
    MOST_LATE,
    CheckSpec,
    ChoiceSpec,
    Row,
    Run,
    judge,
    percentile,
    pooled,
    ratio,
    tokens_per_s,
)
from tests.benchmarks.table import chart, check_lines, markdown_checks


def run(name: str, decode_s: dict[int, float], num_sessions: int = 8, p95_ms: float = 10.0) -> Run:
    rate = tokens_per_s(num_sessions, [(64, seconds) for seconds in decode_s.values()])
    row = Row(name, num_sessions, 0, 0.7, 1.0, 64, rate, 8000 / rate, p95_ms, 1, 0, 0, 0, 0.5)
    return Run(row, decode_s, dict.fromkeys(decode_s, 64))


def test_a_burst_is_counted_once_and_gaps_lie_between_bursts() -> None:
    served = Served(Job(0, (1,), 7, 4))
    served.add([[5, "node"], [6, "ngram"]], 1.0)
    served.add([[7, ""]], 1.5)
    served.add([[8, "node"]], 3.0)
    assert (served.num_tokens, served.num_first, served.decode_s) == (4, 2, 2.0)
    assert served.gaps_s == [0.5, 1.5]
    assert served.num_by_guesser == {"node": 2, "ngram": 1, "": 1}
    assert served.token_ids == [5, 6, 7, 8]


def test_all_sessions_count_towards_the_rate() -> None:
    assert tokens_per_s(8, [(60, 2.0), (60, 4.0)]) == pytest.approx(8 * 120 / 6)


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.95, 10), (0.1, 1)])
def test_percentiles_are_values_that_occurred(share: float, value: float) -> None:
    assert percentile([float(n) for n in range(10, 0, -1)], share) == value
    assert percentile([], share) == 0


def test_ratios_are_paired_by_job() -> None:
    fast, slow = run("fast", {0: 1.0, 1: 2.0, 2: 4.0}), run("slow", {0: 2.0, 1: 4.0, 9: 1.0})
    value, error = ratio(fast, slow)
    assert value == pytest.approx(2.0)  # job 2 and job 9 have no partner
    assert error == pytest.approx(0.0)


def test_a_ratio_that_differs_from_job_to_job_has_an_error() -> None:
    value, error = ratio(run("a", {0: 1.0, 1: 1.0, 2: 1.0}), run("b", {0: 1.0, 1: 2.0, 2: 3.0}))
    assert value == pytest.approx(2.0)
    assert error == pytest.approx(math.sqrt(1 / 3))


def test_more_sessions_in_flight_count_as_such() -> None:
    value, _ = ratio(
        run("capped", {0: 3.0, 1: 3.0}, num_sessions=24), run("alone", {0: 1.5, 1: 1.5})
    )
    assert value == pytest.approx(1.5)


def test_of_several_runs_the_mean_of_every_job_counts() -> None:
    runs = [run("a", {0: 1.0, 1: 2.0}), run("a", {0: 3.0, 1: 2.5})]
    both, other = pooled(runs), run("b", {0: 5.0, 1: 1.0})
    assert both.decode_s == {0: 2.0, 1: 2.25}
    assert both.row.tokens_per_s == pytest.approx(tokens_per_s(8, [(64, 2.0), (64, 2.25)]))
    assert ratio(both, other)[0] == pytest.approx(both.row.tokens_per_s / other.row.tokens_per_s)
    rates = [one.row.tokens_per_s for one in runs]
    assert both.row.spread == pytest.approx((rates[0] - rates[1]) / both.row.tokens_per_s)
    assert both.row.num_runs == 2
    alone = pooled(runs[:1])
    assert (alone.decode_s, alone.row.num_runs, alone.row.spread) == (runs[0].decode_s, 1, 0.0)


def test_a_run_with_late_forwards_or_fewer_jobs_counts_only_where_there_is_no_other() -> None:
    good, bad = run("a", {0: 1.0, 1: 2.0}), late(run("a", {0: 9.0, 1: 9.0}), 2 * MOST_LATE)
    assert pooled([bad, good, run("a", {0: 9.0})]).decode_s == good.decode_s
    assert pooled([bad]).row.late_share == 2 * MOST_LATE
    assert pooled([bad, run("a", {0: 9.0})]).row.late_share == 2 * MOST_LATE


def test_nodes_that_chose_otherwise_in_another_run_did_not_choose_the_best() -> None:
    small, large = run("a", {0: 1.0}), run("a", {0: 1.0})
    small = replace(small, row=replace(small.row, drafts=("small",)))
    large = replace(large, row=replace(large.row, drafts=("large",)))
    assert pooled([small, large]).row.drafts == ("large", "small")


def test_the_best_alternative_counts() -> None:
    runs = {
        "ours": run("ours", {0: 1.0, 1: 1.0}),
        "plain": run("plain", {0: 4.0, 1: 4.0}),
        "tree": run("tree", {0: 1.25, 1: 1.25}),
    }
    check = judge(CheckSpec("equal", ("ours",), ("plain", "tree"), 1.3), runs)
    assert check is not None
    assert check.value == pytest.approx(1.25)
    assert (check.holds, check.verdict) == (False, "fails")
    assert check.note == "ours against tree"


def test_nothing_holds_against_the_best_before_all_of_them_were_run() -> None:
    """The one that is missing may be the best: what is known so far is shown as that."""
    runs = {"ours": run("ours", {0: 1.0, 1: 1.0}), "plain": run("plain", {0: 4.0, 1: 4.0})}
    spec = CheckSpec("equal", ("ours",), ("plain", "tree", "deep"), 1.3)
    check = judge(spec, runs)
    assert check is not None
    assert check.value == pytest.approx(4.0)
    assert (check.holds, check.verdict) == (False, "partial")
    assert check.note == "ours against plain; not run yet: tree, deep"
    assert "**partial**" in markdown_checks([check])
    assert check_lines([check])[0].startswith("PARTIAL")
    runs |= {name: run(name, {0: 2.0, 1: 2.0}) for name in ("tree", "deep")}
    check = judge(spec, runs)
    assert check is not None
    assert check.value == pytest.approx(2.0)
    assert check.verdict == "holds"


def late(one: Run, share: float) -> Run:
    return replace(one, row=replace(one.row, late_share=share))


@pytest.mark.parametrize("name", ["ours", "plain", "tree"])
def test_nothing_holds_on_a_run_whose_forwards_ended_late(name: str) -> None:
    """Whichever of the compared runs it is, the best one or another."""
    runs = {
        "ours": run("ours", {0: 1.0, 1: 1.0}),
        "plain": run("plain", {0: 4.0, 1: 4.0}),
        "tree": run("tree", {0: 2.0, 1: 2.0}),
    }
    spec = CheckSpec("equal", ("ours",), ("plain", "tree"), 1.3)
    just = judge(spec, runs | {name: late(runs[name], MOST_LATE)})
    assert just is not None
    assert just.verdict == "holds"
    check = judge(spec, runs | {name: late(runs[name], 0.012)})
    assert check is not None
    assert (check.value, check.holds) == (just.value, False)
    assert check.verdict == "refused"
    assert f"refused, forwards ended late: {name} 1.2%" in check.note
    assert "**refused**" in markdown_checks([check])


def test_what_is_late_and_not_complete_says_both() -> None:
    runs = {"ours": late(run("ours", {0: 1.0}), 0.5)}
    check = judge(CheckSpec("gap", ("ours", "other"), (), 30.0, "p95_gap_ms", False), runs)
    assert check is not None
    assert check.verdict == "refused"
    assert "not run yet: other" in check.note


@pytest.mark.parametrize(
    ("spec", "value", "holds"),
    [
        (CheckSpec("itl", ("ours",), ("plain",), 0.3, "itl", at_least=False), 0.25, True),
        (CheckSpec("gap", ("ours",), ("plain",), 1.0, "p95_gap", at_least=False), 2.0, False),
        (CheckSpec("gap", ("ours",), (), 30.0, "p95_gap_ms", at_least=False), 20.0, True),
    ],
)
def test_latencies_must_stay_below_their_bounds(spec: CheckSpec, value: float, holds: bool) -> None:
    runs = {
        "ours": run("ours", {0: 1.0, 1: 1.0}, p95_ms=20.0),
        "plain": run("plain", {0: 4.0, 1: 4.0}),
    }
    check = judge(spec, runs)
    assert check is not None
    assert check.value == pytest.approx(value)
    assert check.holds is holds


def test_what_was_not_run_is_not_judged() -> None:
    spec = CheckSpec("equal", ("ours",), ("plain",), 1.0)
    assert judge(spec, {}) is None
    assert judge(spec, {"ours": run("ours", {0: 1.0})}) is None


def test_losers_are_shown_beside_winners() -> None:
    runs = {"ours": run("ours", {0: 2.0, 1: 2.0}), "plain": run("plain", {0: 1.0, 1: 1.0})}
    check = judge(CheckSpec("floor", ("ours",), ("plain",), 0.97), runs)
    assert check is not None
    assert "**fails**" in markdown_checks([check])
    assert "0.50" in chart([check])


def test_the_choice_is_right_where_the_better_draft_model_was_taken() -> None:
    def with_draft(name: str, seconds: float, draft: str) -> Run:
        found = run(name, {0: seconds})
        return replace(found, row=replace(found.row, drafts=(draft,)))

    cases = (("a/either", ("a/small", "a/large")), ("b/either", ("b/small", "b/large")))
    runs = [
        *(with_draft("a/small", 2.0, "small"), with_draft("a/large", 1.0, "large")),
        *(with_draft("b/small", 1.0, "small"), with_draft("b/large", 2.0, "large")),
        *(with_draft("a/either", 1.0, "large"), with_draft("b/either", 2.0, "large")),
    ]
    known = {one.row.name: one for one in runs}
    spec = ChoiceSpec("choice", cases)
    check = judge(spec, known)
    assert check is not None
    assert (check.value, check.bound, check.holds) == (1, 2, False)
    known["b/either"] = with_draft("b/either", 2.0, "small")
    check = judge(spec, known)
    assert check is not None
    assert check.verdict == "holds"
    check = judge(spec, known | {"a/small": late(known["a/small"], 0.02)})
    assert check is not None
    assert check.verdict == "refused"
    del known["b/large"]
    assert judge(spec, known) is None
