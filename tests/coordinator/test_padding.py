"""The tallies of an emulated engine, over its processes."""

import msgspec

from coordinator.engine.messages import StepDone
from coordinator.padding import PaddingTotals
from specedge_p2p.views import PaddingView

STEP = StepDone(1, 7.0, 7.1, 0.0, 1, [])


def add(totals: PaddingTotals, num: int, late: int, used_s: float, padded_s: float) -> None:
    totals.add(
        msgspec.structs.replace(
            STEP, num_padded=num, num_late=late, used_s=used_s, padded_s=padded_s
        )
    )


def test_a_real_engine_pads_nothing() -> None:
    totals = PaddingTotals()
    totals.add(STEP)
    assert totals.view == PaddingView()


def test_what_a_dead_process_counted_stays_counted() -> None:
    totals = PaddingTotals()
    add(totals, 2, 1, 0.5, 1.0)
    add(totals, 5, 1, 1.0, 2.5)
    assert totals.view == PaddingView(5, 1, 1.0, 2.5)
    add(totals, 1, 0, 0.25, 0.5)  # a new process
    add(totals, 3, 1, 0.75, 1.5)
    assert totals.view == PaddingView(8, 2, 1.75, 4.0)
    add(totals, 1, 0, 0.25, 0.5)
    assert totals.view == PaddingView(9, 2, 2.0, 4.5)
