"""Frames of the engine's socket."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.framing import (
    MAX_FRAME_BYTES,
    FrameCutter,
    FrameError,
    FromChild,
    decode_from_child,
    decode_to_engine,
    encode,
)
from coordinator.engine.messages import (
    CloseSession,
    DropSource,
    EngineDied,
    EntryResult,
    LoadFailed,
    Ready,
    SessionFailed,
    StepDone,
    ToEngine,
    TokenSource,
)
from tests.support.engine import batch, open_session, vertices

TO_ENGINE: list[ToEngine] = [
    open_session(1, [5, 6, 7]),
    CloseSession(1),
    vertices(1, 3, 2, [4, 5]),
    DropSource(1, 3),
    batch([1, 2], sources=[3]),
]
FROM_CHILD: list[FromChild] = [
    Ready("toy", 32, 4096, [1], "float64", b"x" * 16, 0.1, 0.01),
    StepDone(1, 0.0, 1.0, 0.1, 9, [EntryResult(1, 3, [4], [TokenSource(3, 8, True)], 2, 1)]),
    SessionFailed(1, "out_of_cache", "full"),
    EngineDied("gone"),
    LoadFailed("no model"),
]


@given(sizes=st.lists(st.integers(1, 40), max_size=200))
def test_messages_survive_any_cutting_of_the_stream(sizes: list[int]) -> None:
    stream = encode(*TO_ENGINE) + encode() + encode(TO_ENGINE[0])
    cutter = FrameCutter()
    frames = []
    for size in [*sizes, len(stream)]:
        frames += cutter.feed(stream[:size])
        stream = stream[size:]
    assert [decode_to_engine(frame) for frame in frames] == [TO_ENGINE, [], TO_ENGINE[:1]]


def test_what_the_child_says_survives() -> None:
    (frame,) = FrameCutter().feed(encode(*FROM_CHILD))
    assert decode_from_child(frame) == FROM_CHILD


def test_neither_end_takes_the_others_messages() -> None:
    (to_engine,) = FrameCutter().feed(encode(*TO_ENGINE))
    (from_child,) = FrameCutter().feed(encode(*FROM_CHILD))
    with pytest.raises(FrameError):
        decode_to_engine(from_child)
    with pytest.raises(FrameError):
        decode_from_child(to_engine)


@given(junk=st.binary(max_size=60))
def test_junk_is_a_frame_error_or_a_list(junk: bytes) -> None:
    for decode in (decode_to_engine, decode_from_child):
        with suppress(FrameError):
            assert isinstance(decode(junk), list)


def test_law7_bounded_frames() -> None:
    with pytest.raises(FrameError):
        FrameCutter().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(FrameError):
        encode(EngineDied("x" * MAX_FRAME_BYTES))
