import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.attention import (
    ancestor_rows,
    append_rows,
    bitmask_words,
    compact_rows,
    dense,
)


def closure(parents: list[int]) -> npt.NDArray[np.bool_]:
    """Reflexive-transitive closure of the parent relation, by repeated squaring."""
    reach = np.eye(len(parents), dtype=int)
    for slot, parent in enumerate(parents):
        if parent >= 0:
            reach[slot, parent] = 1
    for _ in parents:
        reach = np.minimum(1, reach @ reach)
    return reach.astype(bool)


def draw_parents(data: st.DataObject, most: int) -> list[int]:
    num = data.draw(st.integers(0, most))
    return [data.draw(st.integers(-1, slot - 1)) for slot in range(num)]


@pytest.mark.parametrize(("slots", "words"), [(0, 1), (1, 1), (64, 1), (65, 2), (2048, 32)])
def test_bitmask_words(slots: int, words: int) -> None:
    assert bitmask_words(slots) == words


@given(st.data())
def test_rows_see_themselves_and_their_ancestors_alone(data: st.DataObject) -> None:
    parents = draw_parents(data, 140)
    masks = ancestor_rows(np.array(parents, dtype=np.int32))
    assert masks.shape == (len(parents), bitmask_words(len(parents)))
    seen = dense(masks)
    assert (seen[:, : len(parents)] == closure(parents)).all()
    assert not seen[:, len(parents) :].any()


@given(st.data())
def test_rows_written_in_several_forwards_equal_one(data: st.DataObject) -> None:
    parents = draw_parents(data, 100)
    whole = ancestor_rows(np.array(parents, dtype=np.int32))
    cut = data.draw(st.integers(0, len(parents)))
    early = ancestor_rows(np.array(parents[:cut], dtype=np.int32))
    late = ancestor_rows(np.array(parents[cut:], dtype=np.int32), cut, early)
    assert (append_rows(early, late) == whole).all()


@given(st.data())
def test_kept_slots_are_renumbered(data: st.DataObject) -> None:
    parents = draw_parents(data, 80)
    keep = data.draw(st.lists(st.integers(0, len(parents) - 1), unique=True)) if parents else []
    kept = compact_rows(ancestor_rows(np.array(parents, dtype=np.int32)), keep)
    assert kept.shape == (len(keep), bitmask_words(len(keep)))
    assert (dense(kept)[:, : len(keep)] == closure(parents)[np.ix_(keep, keep)]).all()


@pytest.mark.parametrize(
    ("parents", "first_slot", "num_base"),
    [([0], 0, 0), ([1, -1], 0, 0), ([-2], 0, 0), ([0], 2, 0), ([1], 2, 1), ([3], 2, 2)],
)
def test_parents_without_a_mask_are_refused(
    parents: list[int], first_slot: int, num_base: int
) -> None:
    base = np.ones((num_base, 1), dtype=np.uint64) if num_base else None
    with pytest.raises(ValueError, match="cannot have parent"):
        ancestor_rows(np.array(parents, dtype=np.int32), first_slot, base)


def test_rows_without_a_tail_parent_need_no_base() -> None:
    masks = ancestor_rows(np.array([-1, 70], dtype=np.int32), 70)
    assert [np.flatnonzero(row).tolist() for row in dense(masks)] == [[70], [70, 71]]
