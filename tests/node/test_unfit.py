"""What is remembered of coordinators that cannot use this node."""

import weakref

import msgspec
import pytest

from node.link_life import Refused
from node.selection import NoFit
from node.unfit import MAX_UNFIT, UNFIT_S, UnfitCoordinators
from specedge_p2p.lm.toy import ToyModel, ToyParams
from tests.support.join_world import ELSEWHERE, THERE, found

RECORD = found(THERE).record
REASON = NoFit("another tokenizer")


def test_a_coordinator_is_left_out_for_a_bounded_time() -> None:
    unfit = UnfitCoordinators()
    assert unfit.problem(RECORD, 0.0) is None
    assert unfit.note(RECORD, REASON, 5.0)
    assert unfit.problem(RECORD, 5.0 + 0.99 * UNFIT_S) is REASON
    assert unfit.problem(found(ELSEWHERE).record, 5.0) is None
    assert unfit.problem(RECORD, 5.0 + UNFIT_S) is None


def test_until_the_record_offers_something_else() -> None:
    unfit = UnfitCoordinators()
    unfit.note(RECORD, REASON, 0.0)
    busier = msgspec.structs.replace(RECORD, load=0.7, sequence=9, expires_at_s=2e12)
    assert unfit.problem(busier, 1.0) is REASON
    for change in (
        {"target_models": ("other",)},
        {"tokenizer_fingerprints": ()},
        {"draft_models": ("another",)},
    ):
        assert unfit.problem(msgspec.structs.replace(RECORD, **change), 1.0) is None


def test_a_reason_is_new_once() -> None:
    unfit = UnfitCoordinators()
    assert unfit.note(RECORD, REASON, 0.0)
    assert not unfit.note(RECORD, NoFit(str(REASON)), 2 * UNFIT_S)
    assert unfit.note(RECORD, Refused("banned", "go away"), 4 * UNFIT_S)
    assert unfit.note(found(ELSEWHERE).record, REASON, 0.0)


def test_law7_bounded() -> None:
    unfit = UnfitCoordinators()
    records = [msgspec.structs.replace(RECORD, peer_id=str(n)) for n in range(MAX_UNFIT + 9)]
    for record in records:
        unfit.note(record, REASON, 0.0)
    known = [unfit.problem(record, 1.0) is not None for record in records]
    assert known == [False] * 9 + [True] * MAX_UNFIT


def test_no_frame_is_kept() -> None:
    unfit = UnfitCoordinators()
    model = ToyModel(ToyParams())
    ref = weakref.ref(model)
    with pytest.raises(NoFit) as caught:
        _fail_with(model)
    unfit.note(RECORD, caught.value, 0.0)
    del model, caught
    assert ref() is None


def _fail_with(model: ToyModel) -> None:
    try:
        raise MemoryError(model.info.name)
    except MemoryError as error:
        raise NoFit("no room") from error
