"""The binary columns inside messages, and their way from and to arrays.

A token id takes 3 bytes, a parent index 2, a log-probability 1, all little-endian: 32 vertices are
192 bytes. Proposals are padded to size classes, so that their length tells an observer the class of
their vertex count and nothing of the text. msgpack writes small numbers shorter, so the padding
levels out how many bytes the numbers took as well.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from specedge_p2p.tree.draft_tree import Candidates
from specedge_p2p.tree.growth import Gain
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import MAX_PROPOSAL_VERTICES, MAX_VOCAB, Proposal

SIZE_CLASSES = (8, 16, *range(32, MAX_PROPOSAL_VERTICES + 1, 32))
"""Vertex counts to which proposals are padded: steps of 32 keep the padding within one bin8."""

_FEW_TOKENS = 16
"""A verdict of so many is packed faster without arrays."""
_NATS_PER_STEP = 1.0 / 16.0
_LOG_PROBS = np.arange(256, dtype=np.float32) * np.float32(-_NATS_PER_STEP)
"""What each byte of a column says."""
_LARGEST = Proposal(
    session_no=(1 << 32) - 1,
    tree_no=(1 << 32) - 1,
    first_index=(1 << 16) - 1,
    base_position=1 << 22,
    token_ids=b"",
    parents=b"",
    log_probs=b"",
)


def pack_tokens(token_ids: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
    """3 bytes per token id. Raises ValueError for an id that does not fit."""
    if isinstance(token_ids, list) and len(token_ids) <= _FEW_TOKENS:
        try:
            return b"".join([token_id.to_bytes(3, "little") for token_id in token_ids])
        except OverflowError as error:
            raise ValueError("a token id does not fit into 24 bits") from error
    wide = np.asarray(token_ids, dtype=np.int64)
    if wide.size and (wide.min() < 0 or wide.max() >= MAX_VOCAB):
        raise ValueError("a token id does not fit into 24 bits")
    return wide.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def unpack_tokens(packed: bytes) -> npt.NDArray[np.int32]:
    """Token ids, int32, read-only. Raises ProtocolError when the length is no multiple of 3."""
    if len(packed) % 3:
        raise ProtocolError("bad-column", "a column of token ids has a broken length")
    octets = bytearray(len(packed) // 3 * 4)
    octets[0::4], octets[1::4], octets[2::4] = packed[0::3], packed[1::3], packed[2::3]
    return np.frombuffer(bytes(octets), dtype="<i4")


def pack_parents(parents: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
    """2 bytes per tree index. Raises ValueError for an index that does not fit."""
    wide = np.asarray(parents, dtype=np.int64)
    if wide.size and (wide.min() < 0 or wide.max() >= 1 << 16):
        raise ValueError("a parent index does not fit into 16 bits")
    return wide.astype("<u2").tobytes()


def pack_log_probs(log_probs: Sequence[float] | npt.NDArray[np.floating]) -> bytes:
    """1 byte per edge, in 1/16 nat, saturating at 255; what is no number counts as impossible."""
    steps = np.asarray(log_probs, dtype=np.float64) / -_NATS_PER_STEP
    return np.rint(np.fmax(np.fmin(steps, 255.0), 0.0)).astype(np.uint8).tobytes()


def unpack_candidates(token_ids: bytes, parents: bytes, log_probs: bytes) -> Candidates:
    """The columns of a proposal as arrays. Raises ProtocolError when their lengths disagree."""
    count = len(log_probs)
    if len(token_ids) != 3 * count or len(parents) != 2 * count:
        raise ProtocolError("bad-column", "the columns of a proposal have different lengths")
    return Candidates(
        token_ids=unpack_tokens(token_ids),
        parents=np.frombuffer(parents, dtype="<u2").astype(np.int32),
        log_probs=_LOG_PROBS[np.frombuffer(log_probs, dtype=np.uint8)],
    )


def candidates(proposal: Proposal) -> Candidates:
    """The vertices that a proposal brings. Raises ProtocolError when its columns disagree."""
    return unpack_candidates(proposal.token_ids, proposal.parents, proposal.log_probs)


def proposal_from_gain(session_no: int, gain: Gain) -> Proposal:
    """A gain as a message, padded to its size class. Raises ValueError beyond the largest class."""
    return padded(
        Proposal(
            session_no=session_no,
            tree_no=gain.tree_no,
            first_index=gain.first_index,
            base_position=gain.base_position,
            token_ids=pack_tokens(gain.candidates.token_ids),
            parents=pack_parents(gain.candidates.parents),
            log_probs=pack_log_probs(gain.candidates.log_probs),
        )
    )


def padded(proposal: Proposal) -> Proposal:
    """The same proposal, as long on the wire as all others of its size class."""
    bare = msgspec.structs.replace(proposal, padding=b"")
    length = len(msgspec.msgpack.encode(bare))
    return msgspec.structs.replace(bare, padding=bytes(_class_bytes(len(bare.log_probs)) - length))


def _class_bytes(count: int) -> int:
    """Length of a proposal with the largest numbers and the class's full columns, unpadded."""
    if count > SIZE_CLASSES[-1]:
        raise ValueError(f"a proposal holds at most {SIZE_CLASSES[-1]} vertices, not {count}")
    size = next(size for size in SIZE_CLASSES if size >= count)
    full = msgspec.structs.replace(
        _LARGEST, token_ids=bytes(3 * size), parents=bytes(2 * size), log_probs=bytes(size)
    )
    return len(msgspec.msgpack.encode(full))
