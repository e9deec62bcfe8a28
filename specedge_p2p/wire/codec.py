"""Frames: a 4-byte big-endian length, then one msgpack array of messages."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import (
    MAX_FRAME_BYTES,
    MAX_MESSAGES_PER_FRAME,
    CoordinatorMessage,
    NodeMessage,
)

Side = Literal["node", "coordinator"]
AnyMessage = NodeMessage | CoordinatorMessage
PREFIX_BYTES = 4

_LENGTHS = msgspec.Meta(min_length=1, max_length=MAX_MESSAGES_PER_FRAME)
_FROM_NODE = msgspec.msgpack.Decoder(Annotated[tuple[NodeMessage, ...], _LENGTHS])
_FROM_COORDINATOR = msgspec.msgpack.Decoder(Annotated[tuple[CoordinatorMessage, ...], _LENGTHS])


def encode_frame(messages: Sequence[AnyMessage]) -> bytes:
    """One frame, without its length prefix. Raises ValueError when they are none or too many."""
    if not 0 < len(messages) <= MAX_MESSAGES_PER_FRAME:
        raise ValueError(f"a frame holds 1 to {MAX_MESSAGES_PER_FRAME} messages")
    frame = msgspec.msgpack.encode(messages)
    if len(frame) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame has at most {MAX_FRAME_BYTES} bytes, not {len(frame)}")
    return frame


def decode_frame(frame: bytes, side: Side) -> tuple[AnyMessage, ...]:
    """The messages of a frame that `side` received, each valid by itself.

    Raises ProtocolError for everything else, also for messages that only `side` itself may send.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError("frame-too-large", f"a frame of {len(frame)} bytes")
    try:
        if side == "coordinator":
            from_node: tuple[NodeMessage, ...] = _FROM_NODE.decode(frame)
            return from_node
        from_coordinator: tuple[CoordinatorMessage, ...] = _FROM_COORDINATOR.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # UnicodeDecodeError: text that is no UTF-8; RecursionError: deep nesting in unknown fields.
        raise ProtocolError("bad-message", _one_line(error)) from error
    return from_coordinator


def frame_prefix(frame: bytes) -> bytes:
    """What stands before a frame on a byte stream. Raises ValueError for a frame too large."""
    if len(frame) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame has at most {MAX_FRAME_BYTES} bytes, not {len(frame)}")
    return len(frame).to_bytes(PREFIX_BYTES, "big")


class FrameBuffer:
    """Cuts a byte stream into frames; keeps at most one unfinished frame."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def num_bytes(self) -> int:
        """Bytes of an unfinished frame; not 0 at the end of a stream means it was cut off."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, in order.

        Raises ProtocolError when a prefix announces more than MAX_FRAME_BYTES, before anything of
        that frame is kept; the stream cannot be read on after it.
        """
        self._rest += data
        frames = []
        start = 0
        while len(self._rest) - start >= PREFIX_BYTES:
            body = start + PREFIX_BYTES
            length = int.from_bytes(self._rest[start:body], "big")
            if length > MAX_FRAME_BYTES:
                self._rest.clear()
                raise ProtocolError("frame-too-large", f"a frame of {length} bytes is announced")
            if len(self._rest) - body < length:
                break
            frames.append(bytes(self._rest[body : body + length]))
            start = body + length
        del self._rest[:start]
        return frames


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
