"""What the leader of a tensor-parallel model tells its followers: frames of msgpack over a pipe.

Only calls of the port that change a cache or run a forward are told; each rank keeps the same
books over its own share of the heads. No pickle: a frame is a 4-byte length and a list of records.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from specedge_p2p.lm.ports import Rows
from specedge_p2p.lm.prefix import PageName

PREFIX_BYTES = 4


class AddSequence(msgspec.Struct, frozen=True, tag=True):
    sequence: int


class DropSequence(msgspec.Struct, frozen=True, tag=True):
    sequence: int


class Compact(msgspec.Struct, frozen=True, tag=True):
    sequence: int
    commit: list[int]
    keep: list[int]


class SharePrefix(msgspec.Struct, frozen=True, tag=True):
    sequence: int
    names: list[PageName]


class AdoptPrefix(msgspec.Struct, frozen=True, tag=True):
    sequence: int
    names: list[PageName]


class PackedRows(msgspec.Struct, frozen=True, array_like=True):
    """`Rows` with its columns as little-endian bytes; `num_words` is W of `visible`."""

    sequence: int
    token_ids: bytes
    positions: bytes
    visible: bytes | None
    num_words: int
    num_outputs: int


class Forward(msgspec.Struct, frozen=True, tag=True):
    """`choose` where `branch_width` is None, else `expand`."""

    batch: list[PackedRows]
    branch_width: int | None = None


Call = AddSequence | DropSequence | SharePrefix | AdoptPrefix | Compact | Forward

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Call])


def pack_rows(rows: Rows) -> PackedRows:
    visible = rows.visible
    return PackedRows(
        sequence=rows.sequence,
        token_ids=rows.token_ids.astype("<i4", copy=False).tobytes(),
        positions=rows.positions.astype("<i4", copy=False).tobytes(),
        visible=None if visible is None else visible.astype("<u8", copy=False).tobytes(),
        num_words=0 if visible is None else visible.shape[1],
        num_outputs=rows.num_outputs,
    )


def unpack_rows(packed: PackedRows) -> Rows:
    visible = None
    if packed.visible is not None:
        words = np.frombuffer(packed.visible, "<u8").astype(np.uint64, copy=False)
        visible = words.reshape(-1, packed.num_words)
    return Rows(
        sequence=packed.sequence,
        token_ids=np.frombuffer(packed.token_ids, "<i4").astype(np.int32, copy=False),
        positions=np.frombuffer(packed.positions, "<i4").astype(np.int32, copy=False),
        visible=visible,
        num_outputs=packed.num_outputs,
    )


def encode_calls(calls: Sequence[Call]) -> bytes:
    """One frame with its length in front."""
    body = _encoder.encode(calls)
    return len(body).to_bytes(PREFIX_BYTES, "big") + body


def read_calls(read: Callable[[int], bytes]) -> list[Call] | None:
    """The next frame; None where the pipe has ended, be it in the middle of a frame.

    Args:
        read: returns that many bytes, fewer only at the end.
    """
    prefix = read(PREFIX_BYTES)
    if len(prefix) < PREFIX_BYTES:
        return None
    size = int.from_bytes(prefix, "big")
    body = read(size)
    return _decoder.decode(body) if len(body) == size else None
