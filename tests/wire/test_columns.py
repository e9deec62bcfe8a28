"""Columns keep what they carry, and proposals of one class have one length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.draft_tree import Candidates
from specedge_p2p.tree.growth import Gain
from specedge_p2p.wire.codec import PREFIX_BYTES, decode_frame, encode_frame
from specedge_p2p.wire.columns import (
    SIZE_CLASSES,
    candidates,
    pack_log_probs,
    pack_parents,
    pack_tokens,
    padded,
    proposal_from_gain,
    unpack_candidates,
    unpack_tokens,
)
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import MAX_CONTEXT, MAX_PROPOSAL_VERTICES, MAX_VOCAB, Proposal
from tests.support.links import changed

TOKEN_IDS = st.lists(st.integers(0, MAX_VOCAB - 1), max_size=40)


def filled(count: int, session_no: int, tree_no: int, first_index: int, base: int) -> Proposal:
    gain = Gain(
        tree_no,
        first_index,
        base,
        Candidates(
            np.full(count, MAX_VOCAB - 1, dtype=np.int32),
            np.full(count, first_index - 1, dtype=np.int32),
            np.full(count, -100.0, dtype=np.float32),
        ),
    )
    return proposal_from_gain(session_no, gain)


@given(TOKEN_IDS)
def test_tokens_come_back(token_ids: list[int]) -> None:
    packed = pack_tokens(token_ids)
    assert len(packed) == 3 * len(token_ids)
    unpacked = unpack_tokens(packed)
    assert unpacked.tolist() == token_ids
    assert unpacked.dtype == np.int32
    assert not unpacked.flags.writeable


def test_tokens_are_little_endian() -> None:
    assert pack_tokens([0x010203]) == b"\x03\x02\x01"


@pytest.mark.parametrize("token_id", [-1, MAX_VOCAB])
def test_a_token_beyond_24_bits_is_refused(token_id: int) -> None:
    with pytest.raises(ValueError, match="24 bits"):
        pack_tokens([token_id])
    with pytest.raises(ValueError, match="24 bits"):
        pack_tokens([token_id] * 100)


@pytest.mark.parametrize("parent", [-1, 65_536])
def test_a_parent_beyond_16_bits_is_refused(parent: int) -> None:
    with pytest.raises(ValueError, match="16 bits"):
        pack_parents([parent])


def test_log_probs_are_rounded_and_saturate() -> None:
    packed = pack_log_probs([0.0, -1.0, -0.03, -0.04, -15.94, -100.0, -np.inf, np.nan, 0.5])
    assert list(packed) == [0, 16, 0, 1, 255, 255, 255, 255, 0]


@given(
    st.lists(
        st.tuples(
            st.integers(0, MAX_VOCAB - 1), st.integers(0, 65_535), st.floats(-15.875, 0, width=32)
        ),
        min_size=1,
        max_size=MAX_PROPOSAL_VERTICES,
    )
)
def test_candidates_come_back(vertices: list[tuple[int, int, float]]) -> None:
    token_ids, parents, log_probs = zip(*vertices, strict=True)
    found = unpack_candidates(
        pack_tokens(token_ids), pack_parents(parents), pack_log_probs(log_probs)
    )
    assert found.token_ids.tolist() == list(token_ids)
    assert found.parents.tolist() == list(parents)
    assert str(found.parents.dtype) == "int32"
    assert str(found.log_probs.dtype) == "float32"
    assert np.abs(found.log_probs - np.array(log_probs)).max() <= 1 / 32
    assert found.log_probs.max() <= 0
    with pytest.raises(ValueError, match="read-only"):
        found.parents[0] = 1


@pytest.mark.parametrize(
    "columns",
    [(b"123", b"12", b""), (b"12", b"12", b"1"), (b"123", b"1", b"1"), (b"123456", b"12", b"1")],
)
def test_law4_bytes_of_unequal_columns_are_one_error(columns: tuple[bytes, bytes, bytes]) -> None:
    with pytest.raises(ProtocolError, match="bad-column"):
        unpack_candidates(*columns)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_law4_bytes_that_are_no_whole_tokens_are_one_error(length: int) -> None:
    with pytest.raises(ProtocolError, match="bad-column"):
        unpack_tokens(bytes(length))


@pytest.mark.parametrize("count", [1, 8, 32])
def test_32_vertices_take_at_most_256_bytes(count: int) -> None:
    worst = filled(count, session_no=4096, tree_no=10_000, first_index=65_000, base=100_000)
    assert len(encode_frame([worst])) + PREFIX_BYTES <= 256


@given(
    count=st.integers(1, MAX_PROPOSAL_VERTICES),
    session_no=st.integers(1, 2**32 - 1),
    tree_no=st.integers(1, 2**32 - 1),
    first_index=st.integers(1, 65_535),
    base=st.integers(0, MAX_CONTEXT),
)
def test_law6_privacy_length_tells_only_the_size_class(
    count: int, session_no: int, tree_no: int, first_index: int, base: int
) -> None:
    size_class = next(size for size in SIZE_CLASSES if size >= count)
    plainest = filled(size_class, session_no=1, tree_no=1, first_index=1, base=0)
    proposal = filled(count, session_no, tree_no, first_index, base)
    frame = encode_frame([proposal])
    assert len(frame) == len(encode_frame([plainest]))
    assert decode_frame(frame, "coordinator") == (proposal,)


def test_padding_twice_changes_nothing() -> None:
    proposal = filled(5, session_no=3, tree_no=4, first_index=300, base=70_000)
    assert padded(proposal) == proposal


def test_classes_differ_in_length() -> None:
    lengths = [len(encode_frame([filled(size, 1, 1, 1, 0)])) for size in SIZE_CLASSES]
    assert lengths == sorted(set(lengths))


def test_law7_bounded_proposal() -> None:
    with pytest.raises(ValueError, match="at most 512"):
        filled(MAX_PROPOSAL_VERTICES + 1, 1, 1, 1, 0)


def test_candidates_of_a_proposal() -> None:
    proposal = changed(filled(2, 1, 1, 5, 7), parents=b"\x04\x00\x05\x01")
    assert candidates(proposal).parents.tolist() == [4, 261]
