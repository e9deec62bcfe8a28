"""Bytes become messages or one ProtocolError; streams are cut into frames."""

import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.wire import messages as m
from specedge_p2p.wire.codec import (
    PREFIX_BYTES,
    AnyMessage,
    FrameBuffer,
    Side,
    decode_frame,
    encode_frame,
    frame_prefix,
)
from specedge_p2p.wire.errors import ProtocolError
from tests.support.links import HELLO, LEASE, OPEN, WELCOME, changed, proposal, verdict

SIDES: tuple[Side, Side] = ("node", "coordinator")
FROM_NODE = (
    HELLO,
    proposal([4, 5], [0, 1]),
    m.Pong(7),
    m.Capacity(2),
    m.Release(1, "gone"),
    m.Resume(LEASE, 4),
    m.ReceiptRequest(0),
    m.Goodbye("bye"),
)
FROM_COORDINATOR = (
    WELCOME,
    m.Refuse("no", "another tokenizer"),
    OPEN,
    m.Prompt(1, 0, b"abc"),
    verdict([4]),
    m.Tune(1, m.GrowthWishes()),
    m.Receipt(b"envelope"),
    m.Ping(7),
    m.Drain(),
    m.Close(1),
)


def raw(*fields: object) -> bytes:
    """A frame with one message, unchecked."""
    return msgspec.msgpack.encode([fields])


def assert_refused(frame: bytes, side: Side) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode_frame(frame, side)
    return caught.value


def test_every_message_comes_back() -> None:
    assert decode_frame(encode_frame(FROM_NODE), "coordinator") == FROM_NODE
    assert decode_frame(encode_frame(FROM_COORDINATOR), "node") == FROM_COORDINATOR


@pytest.mark.parametrize("message", FROM_NODE + FROM_COORDINATOR, ids=lambda m: type(m).__name__)
def test_law4_bytes_only_the_sender_may_say_are_refused(message: AnyMessage) -> None:
    side: Side = "node" if message in FROM_NODE else "coordinator"
    assert assert_refused(msgspec.msgpack.encode([message]), side).code == "bad-message"


@given(st.binary(max_size=300), st.sampled_from(SIDES))
def test_law4_bytes_at_random(data: bytes, side: Side) -> None:
    try:
        decoded = decode_frame(data, side)
    except ProtocolError as error:
        described = f"{error.code}: {error.text}"
    else:
        assert decode_frame(encode_frame(decoded), side) == decoded
        return
    assert described.startswith(("bad-message: ", "frame-too-large: "))
    assert "\n" not in described


@given(st.data(), st.sampled_from(SIDES))
def test_law4_bytes_mutated(data: st.DataObject, side: Side) -> None:
    messages: tuple[AnyMessage, ...] = FROM_COORDINATOR
    if side == "coordinator":
        messages = FROM_NODE
    frame = bytearray(encode_frame([data.draw(st.sampled_from(messages))]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(frame) - 1))
        replacement = data.draw(st.binary(max_size=3))
        frame[at : at + data.draw(st.integers(0, 3))] = replacement
        if not frame:
            break
    try:
        decoded = decode_frame(bytes(frame), side)
    except ProtocolError:
        return
    assert all(isinstance(message, m.Message) for message in decoded)


@pytest.mark.parametrize("message", FROM_NODE + FROM_COORDINATOR, ids=lambda m: type(m).__name__)
def test_law4_bytes_cut_short_are_refused(message: AnyMessage) -> None:
    side: Side = "coordinator" if message in FROM_NODE else "node"
    frame = msgspec.msgpack.encode([message])
    for length in range(len(frame)):
        assert_refused(frame[:length], side)
    assert_refused(frame + b"\x00", side)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x91" * 60_000,
        b"\x81" * 60_000,
        b"\x91\x94\x03\x07" + b"\x91" * 60_000,  # inside fields that we do not know
        b"\x91\x94\x03\x07" + b"\x81" * 60_000,
    ],
)
def test_law4_bytes_nested_deeply_are_refused(frame: bytes) -> None:
    assert_refused(frame, "coordinator")


@pytest.mark.parametrize(
    "frame",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xdd\xff\xff\xff\xff\x01",
        b"\x91\x92\x05\xdd\xff\xff\xff\xff",
        b"\x91\x93\x05\x01\xdb\xff\xff\xff\xff",
        b"\x91\x93\x06\xc6\xff\xff\xff\xff",
        b"\x91\x93\x03\x01\xdf\xff\xff\xff\xff",
    ],
)
def test_law7_bounded_memory_for_claimed_lengths(frame: bytes) -> None:
    tracemalloc.start()
    try:
        assert_refused(frame, "coordinator")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("fields", "side"),
    [
        ((1, 1, 1, "d", b"", b"", 4097, 0.1), "coordinator"),
        ((1, 1, 1, "d", b"", b"", 4, float("nan")), "coordinator"),
        ((1, 1, 1, "d", b"", b"", 4, float("inf")), "coordinator"),
        ((1, 1, 1, "d" * 513, b"", b"", 4, 0.1), "coordinator"),
        ((1, 1, 1, "d", b"f" * 65, b"", 4, 0.1), "coordinator"),
        ((2, 0, 1, 1, 3, b"abc", b"ab", b"a"), "coordinator"),
        ((2, 1, 0, 1, 3, b"abc", b"ab", b"a"), "coordinator"),
        ((2, 1, 1, 0, 3, b"abc", b"ab", b"a"), "coordinator"),
        ((2, 1, 1, 65_536, 3, b"abc", b"ab", b"a"), "coordinator"),
        ((2, 1, 1, 1, -1, b"abc", b"ab", b"a"), "coordinator"),
        ((2, 1, 1, 1, 3, b"", b"", b""), "coordinator"),
        ((2, 1, 1, 1, 3, b"abc", b"ab", b"a", bytes(256)), "coordinator"),
        ((2, 1, 1, 1, 3, bytes(1539), bytes(1026), bytes(513)), "coordinator"),
        ((3, 2**63), "coordinator"),
        ((3, 1.5), "coordinator"),
        ((3, True), "coordinator"),
        ((3, None), "coordinator"),
        ((3,), "coordinator"),
        ((99, 1), "coordinator"),
        ((6, b"short", 4), "coordinator"),
        ((6, LEASE, 0), "coordinator"),
        ((8, b"no text"), "coordinator"),
        ((32, 1, "t", 0, 100, 5.0), "node"),
        ((32, 1, "t", 2**24 + 1, 100, 5.0), "node"),
        ((32, 1, "t", 50, 2**22 + 1, 5.0), "node"),
        ((32, 1, "t", 50, 100, 0.0), "node"),
        ((33, "", "why"), "node"),
        ((35, 1, 0, b""), "node"),
        ((35, 1, 0, bytes(3 * 4097)), "node"),
        ((36, 1, 1, 3, b"abc", 0, "idle"), "node"),
        ((36, 1, 1, 3, bytes(3 * 4097), 0), "node"),
        ((37, 1, [0.1, 1, 2000]), "node"),
        ((37, 1, [-0.1, 1, 256]), "node"),
        ((38, b""), "node"),
        ((38, bytes(4097)), "node"),
    ],
)
def test_law7_bounded_fields(fields: tuple[object, ...], side: Side) -> None:
    assert_refused(raw(*fields), side)


def test_law4_bytes_that_are_no_text_are_refused() -> None:
    assert_refused(b"\x91\x92\x08\xa2\xff\xfe", "coordinator")


def test_unknown_appended_fields_are_ignored() -> None:
    assert decode_frame(raw(3, 7, {"new": [1, None]}), "coordinator") == (m.Pong(7),)


@pytest.mark.parametrize("count", [0, m.MAX_MESSAGES_PER_FRAME + 1])
def test_law7_bounded_number_of_messages(count: int) -> None:
    pongs = [m.Pong(1)] * count
    assert_refused(msgspec.msgpack.encode(pongs), "coordinator")
    with pytest.raises(ValueError, match="1 to 1024"):
        encode_frame(pongs)


def test_law7_bounded_frame() -> None:
    chunk = m.Prompt(1, 0, bytes(3 * m.PROMPT_CHUNK_TOKENS))
    with pytest.raises(ValueError, match="65536"):
        encode_frame([chunk] * 6)
    assert assert_refused(bytes(m.MAX_FRAME_BYTES + 1), "node").code == "frame-too-large"
    with pytest.raises(ValueError, match="65536"):
        frame_prefix(bytes(m.MAX_FRAME_BYTES + 1))


@given(st.lists(st.binary(max_size=50)), st.data())
def test_frames_come_back_however_they_are_cut(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame_prefix(frame) + frame for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    buffer = FrameBuffer()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += buffer.feed(stream[start:end])
    assert found == frames
    assert buffer.num_bytes == 0


def test_a_cut_off_stream_is_seen() -> None:
    buffer = FrameBuffer()
    assert buffer.feed(b"\x00\x00\x00\x05abc") == []
    assert buffer.num_bytes == PREFIX_BYTES + 3


def test_law4_bytes_of_an_oversized_prefix_are_one_error() -> None:
    buffer = FrameBuffer()
    with pytest.raises(ProtocolError, match="frame-too-large"):
        buffer.feed(b"\x00\x00\x00\x00" + (m.MAX_FRAME_BYTES + 1).to_bytes(4, "big") + b"x")
    assert buffer.num_bytes == 0


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_law7_bounded_frame_buffer(chunks: list[bytes]) -> None:
    buffer = FrameBuffer()
    try:
        for chunk in chunks:
            assert all(len(frame) <= m.MAX_FRAME_BYTES for frame in buffer.feed(chunk))
            assert buffer.num_bytes < PREFIX_BYTES + m.MAX_FRAME_BYTES
    except ProtocolError as error:
        code = error.code
    else:
        return
    assert code == "frame-too-large"


def test_a_message_keeps_its_fields_in_order() -> None:
    assert raw(3, 7) == encode_frame([m.Pong(7)])
    assert changed(OPEN, session_no=9).session_no == 9
