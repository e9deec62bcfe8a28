"""Which modes stand beside each other."""

from tests.benchmarks.cells import A100, SITUATIONS, all_cells, best_cells
from tests.benchmarks.clients import Job, Workload
from tests.benchmarks.figures import CheckSpec


def test_every_rival_is_served_and_stands_for_a_kind() -> None:
    for cells in (all_cells(), best_cells()):
        known = {serving.name for cell in cells for serving in cell.servings}
        for cell in cells:
            for check in cell.checks:
                if isinstance(check, CheckSpec):
                    assert {*check.over, *check.against} <= known
    assert [cell.name for cell in best_cells()] == [cell.name for cell in all_cells()]


def test_of_two_fixed_trees_the_better_one_is_always_run() -> None:
    names = [
        {s.name for cell in cells for s in cell.servings} for cells in (all_cells(), best_cells())
    ]
    assert names[0] - names[1] == {name for each in SITUATIONS for name in each.second_trees()} - {
        "paper-32b/T0.7/s4/3x4+ngram"  # n-gram guesses are on neither side there
    }
    assert {A100.tree("3x4").name, f"{A100.name}/2x4+ngram"} <= names[1]


def test_an_absolute_bound_stays_one_and_no_other_becomes_one() -> None:
    for whole, best in zip(all_cells(), best_cells(), strict=True):
        for one, other in zip(whole.checks, best.checks, strict=True):
            if isinstance(one, CheckSpec) and isinstance(other, CheckSpec):
                assert bool(one.against) == bool(other.against)


def test_every_turn_asks_the_same_prompts_with_other_seeds() -> None:
    workload = Workload(tuple(Job(i, (i,), 7, 96) for i in range(24)), 16)
    jobs = workload.of(8, 3)
    assert [job.number for job in jobs] == list(range(48))
    assert workload.of(8) == jobs[:16]
    assert [job.prompt_ids for job in jobs[16:32]] == [job.prompt_ids for job in jobs[:16]]
    assert {job.seed for job in jobs[16:32]} == {8}
