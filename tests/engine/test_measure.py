"""The price of a step."""

from collections.abc import Sequence

import pytest

from coordinator.engine.measure import fit, measure_level, measure_step
from specedge_p2p.lm.ports import Children, ModelError, Rows, TokenIds
from specedge_p2p.lm.toy import ToyModel, ToyParams


class TimedModel(ToyModel):
    """Every forward takes 10 ms and 1 ms per row on its own clock."""

    now = 0.0

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        self.now += 0.010 + 0.001 * sum(len(rows.token_ids) for rows in batch)
        return super().choose(batch)

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        self.now += 0.005 + 0.0005 * sum(len(rows.token_ids) for rows in batch)
        return super().expand(batch, branch_width)


def test_the_line_is_found_and_nothing_is_left_behind() -> None:
    model = TimedModel(cache_rows=200)
    price = measure_step(model, lambda: model.now)
    assert price.step_time_s == pytest.approx(0.011)
    assert price.row_time_s == pytest.approx(0.001)
    assert model.num_free_rows == 200


def test_levels_are_measured_alike() -> None:
    model = TimedModel(ToyParams(vocab_size=4), cache_rows=200)  # fewer tokens than children
    price = measure_level(model, lambda: model.now)
    assert price.step_time_s == pytest.approx(0.0055)
    assert price.row_time_s == pytest.approx(0.0005)
    assert model.num_free_rows == 200


def test_a_floor_hides_what_lies_below_it() -> None:
    model = TimedModel()
    price = measure_step(model, lambda: model.now, step_floor_s=0.5)
    assert price.step_time_s == pytest.approx(0.5)
    assert price.row_time_s == pytest.approx(0.0)


@pytest.mark.parametrize("cache_rows", [1, 2, 9, 30])
def test_a_small_cache_is_measured_with_fewer_rows(cache_rows: int) -> None:
    model = TimedModel(cache_rows=cache_rows)
    price = measure_step(model, lambda: model.now)
    assert price.step_time_s == pytest.approx(0.011)


def test_a_cache_without_rows_is_an_error() -> None:
    model = TimedModel(cache_rows=0)
    with pytest.raises(ModelError):
        measure_step(model, lambda: model.now)


def test_noise_never_makes_a_row_cheaper_than_nothing() -> None:
    price = fit([1, 8, 32], [0.02, 0.01, 0.005])
    assert price.row_time_s == 0
    assert price.step_time_s >= 0.005
