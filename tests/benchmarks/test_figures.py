from tests.benchmarks.figures import Cell, Mode, Sample, checks_of, rows_of
from tests.benchmarks.pipeline import all_cells
from tests.benchmarks.table import COLUMNS, cells_of, markdown_table

CELL = Cell(step_floor_s=0.04, round_trip_ms=0.0, num_sessions=8, temperature=0.7)


def sample(tokens_per_s: float, num_accepted: int = 0) -> Sample:
    return Sample(
        num_tokens=100,
        num_first_tokens=4,
        num_rounds=48,
        num_accepted=num_accepted,
        wall_s=100 / tokens_per_s,
        engine_s=50 / tokens_per_s,
        num_node_bytes=480,
    )


def samples() -> dict[Mode, list[Sample]]:
    return {
        "plain": [sample(10), sample(40), sample(10)],
        "n-gram": [sample(20), sample(20), sample(20)],
        "nodes": [sample(30, 50), sample(30, 30), sample(40, 45)],
    }


def test_a_ratio_is_that_to_the_best_other_mode_of_the_same_repeat() -> None:
    plain, ngram, nodes = rows_of(CELL, samples())
    assert nodes.ratio == 1.5  # of 30/20, 30/40 and 40/20
    assert plain.ratio is None
    assert ngram.ratio is None


def test_rows_hold_medians_and_the_spread_around_them() -> None:
    plain, _, nodes = rows_of(CELL, samples())
    assert (plain.tokens_per_s, plain.spread) == (10, 3.0)
    assert nodes.acceptance_length == 2.0
    assert nodes.share_accepted == 0.45
    assert nodes.engine_busy == 0.5
    assert nodes.node_bytes_per_round == 10


def test_modes_without_samples_have_no_row_and_no_ratio() -> None:
    [row] = rows_of(CELL, {"plain": [], "n-gram": [], "nodes": [sample(30)]})
    assert row.ratio is None


def test_checks_say_what_does_not_hold() -> None:
    low = {**samples(), "nodes": [sample(15, 30)] * 3}
    held = [check.holds for check in checks_of(rows_of(CELL, samples()))]
    failed = [check.holds for check in checks_of(rows_of(CELL, low))]
    assert (held, failed) == ([True, True], [False, False])


def test_the_table_has_a_text_for_every_column() -> None:
    rows = rows_of(CELL, samples())
    assert all(len(cells_of(row)) == len(COLUMNS) for row in rows)
    assert markdown_table(rows).count("\n") == 2 + len(rows)


def test_cells_are_told_apart_and_found_by_their_names() -> None:
    names = [cell.name for cell in all_cells()]
    assert len(set(names)) == len(names) == 16
    assert [cell.name for cell in all_cells("floor40-rtt15-s8-t0.7")] == ["floor40-rtt15-s8-t0.7"]
