"""Frames between coordinator and engine process: a 4-byte length, then msgpack. Sans-I/O."""

import msgspec

from coordinator.engine.messages import FromEngine, LoadFailed, ToEngine

PREFIX_BYTES = 4
MAX_FRAME_BYTES = 64 * 1024 * 1024  # both ends are ours; this only bounds a bug

FromChild = FromEngine | LoadFailed


class FrameError(Exception):
    """The other end sent what the protocol does not know; the connection is of no more use."""


class FrameCutter:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames completed by `data`. Raises FrameError for an oversized one."""
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= PREFIX_BYTES:
            size = int.from_bytes(self._buffer[start : start + PREFIX_BYTES], "big")
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {size} bytes")
            end = start + PREFIX_BYTES + size
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[start + PREFIX_BYTES : end]))
            start = end
        del self._buffer[:start]
        return frames


_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(list[ToEngine])
_from_child = msgspec.msgpack.Decoder(list[FromChild])


def encode(*messages: ToEngine | FromChild) -> bytes:
    """One frame with its length in front. Raises FrameError where it would be too long."""
    body = _encoder.encode(messages)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes")
    return len(body).to_bytes(PREFIX_BYTES, "big") + body


def decode_to_engine(frame: bytes) -> list[ToEngine]:
    """Raises FrameError."""
    try:
        return _to_engine.decode(frame)
    except (msgspec.DecodeError, ValueError) as error:
        raise FrameError(str(error)) from error


def decode_from_child(frame: bytes) -> list[FromChild]:
    """Raises FrameError."""
    try:
        return _from_child.decode(frame)
    except (msgspec.DecodeError, ValueError) as error:
        raise FrameError(str(error)) from error
