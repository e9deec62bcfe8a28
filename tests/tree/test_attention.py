import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.attention import ancestor_masks, pack_masks


def closure(parents: list[int]) -> npt.NDArray[np.bool_]:
    """Reflexive-transitive closure of the parent relation, by repeated squaring."""
    reach = np.eye(len(parents), dtype=int)
    for slot, parent in enumerate(parents):
        if parent >= 0:
            reach[slot, parent] = 1
    for _ in parents:
        reach = np.minimum(1, reach @ reach)
    return reach.astype(bool)


@given(st.data())
def test_rows_see_themselves_and_their_ancestors_alone(data: st.DataObject) -> None:
    num = data.draw(st.integers(0, 140))
    parents = [data.draw(st.integers(-1, slot - 1)) for slot in range(num)]
    seen = [[mask >> slot & 1 for slot in range(num)] for mask in ancestor_masks(parents)]
    assert np.array(seen, bool).reshape(num, num).tolist() == closure(parents).tolist()


@pytest.mark.parametrize("parents", [[0], [1, -1], [-2], [-1, 1]])
def test_parents_that_do_not_stand_before_are_refused(parents: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot have parent"):
        ancestor_masks(parents)


@pytest.mark.parametrize(("slots", "words"), [(0, 1), (1, 1), (64, 1), (65, 2), (2048, 32)])
def test_masks_take_as_many_words_as_there_are_slots(slots: int, words: int) -> None:
    assert pack_masks([], slots).shape == (0, words)
    assert pack_masks([1], slots).shape == (1, words)


@given(st.data())
def test_words_hold_the_bits_of_the_masks(data: st.DataObject) -> None:
    num_slots = data.draw(st.integers(1, 200))
    masks = data.draw(st.lists(st.integers(0, (1 << num_slots) - 1), max_size=8))
    packed = pack_masks(masks, num_slots)
    assert packed.dtype == np.uint64
    assert [sum(int(w) << 64 * at for at, w in enumerate(row)) for row in packed] == masks
