"""The helper that judges float32 and bfloat16 must forgive rounding, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from specedge_p2p.lm.choosing import choose_token
from specedge_p2p.lm.ports import SamplingParams
from tests.support.near_ties import assert_same_or_near_tie, possible_tokens

KEY = bytes(range(16))
GREEDY = SamplingParams(temperature=0)
SAMPLINGS = st.one_of(
    st.just(GREEDY),
    st.builds(
        SamplingParams,
        temperature=st.floats(0.2, 2),
        top_k=st.integers(0, 20),
        top_p=st.floats(0.05, 1),
        min_p=st.floats(0, 0.5),
    ),
)
LOGITS = arrays(np.float64, 16, elements=st.floats(-4, 4))
ERRORS = arrays(np.float64, 16, elements=st.floats(-1, 1))


@given(logits=LOGITS, errors=ERRORS, bound=st.floats(0, 3), sampling=SAMPLINGS)
def test_law1_output_whatever_rounding_chooses_is_possible(
    logits: np.ndarray, errors: np.ndarray, bound: float, sampling: SamplingParams
) -> None:
    """Errors of half the bound move a difference of two logits by the bound."""
    moved = logits + errors * bound / 2 * (1 - 1e-9)
    token = choose_token(moved, sampling, KEY, 7)
    assert possible_tokens(logits, sampling, KEY, 7, bound)[token]


@given(logits=LOGITS, sampling=SAMPLINGS)
def test_without_rounding_one_token_is_possible(
    logits: np.ndarray, sampling: SamplingParams
) -> None:
    possible = possible_tokens(logits, sampling, KEY, 7, 0.0)
    assert np.flatnonzero(possible).tolist() == [choose_token(logits, sampling, KEY, 7)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (GREEDY, [0, 1]),
        (SamplingParams(temperature=1e-3, top_k=2), [0, 1]),
        (SamplingParams(temperature=1000.0, top_k=1), [0, 1]),
        (SamplingParams(temperature=1000.0, min_p=0.999), [0, 1, 2]),
    ],
)
def test_no_more_than_rounding_is_forgiven(sampling: SamplingParams, expected: list[int]) -> None:
    logits = np.array([2.0, 1.99, 1.0, -3.0])
    possible = possible_tokens(logits, sampling, KEY, 0, 0.05)
    assert set(np.flatnonzero(possible)) <= set(expected)
    assert not possible[3]


def reference(token_ids: list[int]) -> np.ndarray:
    """Token 1 and 2 lie close after an even number of tokens, else token 3 wins by far."""
    is_even = len(token_ids) % 2 == 0
    return np.array([0.0, 5.0, 5.0 + 1e-6, -9.0] if is_even else [0.0, 0.0, 0.0, 9.0])


def compare(got: list[int], expected: list[int], dtype: str) -> int | None:
    return assert_same_or_near_tie(got, expected, [7, 7], reference, GREEDY, KEY, dtype)


def test_runs_are_the_same_up_to_a_near_tie() -> None:
    assert compare([2, 3, 2], [2, 3, 2], "float64") is None
    assert compare([2, 3, 1, 0], [2, 3, 2, 3], "float32") == 2
    with pytest.raises(AssertionError, match="in float64 only"):
        compare([1], [2], "float64")
    with pytest.raises(AssertionError, match=r"in bfloat16 only \[3\]"):
        compare([2, 0], [2, 3], "bfloat16")
    with pytest.raises(AssertionError, match="ended before"):
        compare([2, 3], [2], "float32")
