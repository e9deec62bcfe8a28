from collections.abc import Sequence

import numpy as np
import pytest

from specedge_p2p.lm.ports import Children, Rows
from specedge_p2p.lm.toy import ToyModel, ToyParams
from tests.benchmarks import seed_rows
from tests.benchmarks.seed_rows import SeedRow


def assert_holds(*found: SeedRow) -> None:
    failing = [row.check for row in found if not row.check.holds]
    assert not failing, failing


def test_long_prompts_leave_running_streams_alone() -> None:
    row = seed_rows.prefill_interference(seconds=3.0)
    assert_holds(row)
    assert row.off > 2 * row.on  # all of a prompt in one step


def test_queues_finish_a_bimodal_load_sooner() -> None:
    found = seed_rows.queues(80)
    assert_holds(*found)
    assert all(row.on < row.off for row in found)  # a switch that does nothing would hold, too


def test_growth_that_stops_early_computes_less_and_loses_nothing() -> None:
    found = seed_rows.early_stop(seconds=2.0)
    assert_holds(*found)
    forwards, rows, _ = found
    assert forwards.on < forwards.off
    assert rows.on < rows.off


def test_a_standby_takes_over_from_a_dead_node_at_once() -> None:
    gap, undrafted = seed_rows.standby(num_traces=1)
    assert_holds(gap, undrafted)
    assert undrafted.off > undrafted.on


def test_matching_uses_what_it_knows_of_speeds() -> None:
    row = seed_rows.mixed_speeds(seconds=2.0)
    assert_holds(row)
    assert row.on > row.off


def test_level_times_are_predicted_for_shapes_that_were_not_measured() -> None:
    """On a device that takes 5 ms, 0.1 ms a row and 0.5 ms a further session."""
    now = [0.0]

    class Device(ToyModel):
        def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
            num_rows = sum(len(rows.token_ids) for rows in batch)
            now[0] += 0.005 + 0.0001 * num_rows + 0.0005 * (len(batch) - 1)
            return super().expand(batch, branch_width)

    row = seed_rows.level_times(Device(ToyParams(vocab_size=32)), lambda: now[0])
    assert row.on == pytest.approx(0.0, abs=0.05)
    assert row.off > row.on
    assert np.isfinite(row.off)
