"""The sample by which nodes choose draft models: over the overlay, and against hostile bytes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay.memory import MemoryNetwork, address_of
from specedge_p2p.overlay.ports import Link
from specedge_p2p.overlay.sample import (
    ASK_S,
    MAX_CASE_TOKENS,
    MAX_CASES,
    SAMPLE_PROTOCOL,
    DraftSample,
    SampleError,
    decode_sample,
    encode_sample,
    fetch_sample,
    sample_case,
    serve_sample,
)
from specedge_p2p.wire.messages import MAX_FRAME_BYTES

HOST, NODE = (Identity(bytes([number] * 32)) for number in range(2))
CASE = sample_case([2, 3], [4, 5, 6], 0.7, bytes(16))
SAMPLE = DraftSample("target", b"tokenizer", 32, 0.04, [CASE])


@asynccontextmanager
async def serving(sample: DraftSample | None) -> AsyncIterator[MemoryNetwork]:
    network = MemoryNetwork()

    async def current() -> DraftSample | None:
        await trio.lowlevel.checkpoint()
        return sample

    async with serve_sample(network.join(HOST.peer_id), current):
        yield network


async def fetch(network: MemoryNetwork) -> DraftSample:
    return await fetch_sample(network.join(NODE.peer_id), address_of(HOST.peer_id))


async def test_a_node_gets_what_the_coordinator_has(autojump_clock: MockClock) -> None:
    async with serving(SAMPLE) as network:
        sample = await fetch(network)
    assert sample == SAMPLE
    assert sample.cases[0].prompt == [2, 3]
    assert sample.cases[0].tokens == [4, 5, 6]


async def test_no_sample_no_coordinator_and_no_such_protocol_are_one_error(
    autojump_clock: MockClock,
) -> None:
    async with serving(None) as network:
        with pytest.raises(SampleError, match="no sample"):
            await fetch(network)
    for is_there in (False, True):
        network = MemoryNetwork()
        if is_there:
            network.join(HOST.peer_id)
        with pytest.raises(SampleError):
            await fetch(network)


async def test_a_coordinator_that_never_answers_costs_a_bounded_time(
    autojump_clock: MockClock,
) -> None:
    network = MemoryNetwork()

    async def silent(_link: Link) -> None:
        await trio.sleep_forever()

    async with network.join(HOST.peer_id).serve(SAMPLE_PROTOCOL, silent):
        started_s = trio.current_time()
        with pytest.raises(SampleError, match="within"):
            await fetch(network)
        assert trio.current_time() - started_s == pytest.approx(ASK_S, abs=1)


async def test_a_coordinator_that_hangs_up_is_one_error(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()

    async def rude(link: Link) -> None:
        await link.receive()

    async with network.join(HOST.peer_id).serve(SAMPLE_PROTOCOL, rude):
        with pytest.raises(SampleError, match="gives no sample"):
            await fetch(network)


def test_the_largest_sample_fits_into_a_frame() -> None:
    longest = sample_case([5] * MAX_CASE_TOKENS, [6] * MAX_CASE_TOKENS, 0.7, bytes(16))
    cases = [longest] * MAX_CASES
    assert len(encode_sample(msgspec.structs.replace(SAMPLE, cases=cases))) < MAX_FRAME_BYTES


@pytest.mark.parametrize(
    "broken",
    [
        msgspec.structs.replace(CASE, token_ids=b"1234"),
        sample_case([2], [32], 0.0, bytes(16)),
        sample_case([40], [2], 0.0, bytes(16)),
        sample_case([2], [], 0.0, bytes(16)),
        sample_case([2], [3], -1.0, bytes(16)),
        sample_case([2], [3], 0.0, bytes(15)),
        sample_case([2] * (MAX_CASE_TOKENS + 1), [3], 0.0, bytes(16)),
    ],
)
def test_law4_bytes_a_broken_sample_is_refused(broken: object) -> None:
    bad = msgspec.structs.replace(SAMPLE, cases=[broken])
    with pytest.raises(SampleError):
        decode_sample(msgspec.msgpack.encode(bad))
    with pytest.raises(ValueError, match="not a sample"):
        encode_sample(bad)


@given(st.binary(max_size=200))
def test_law4_bytes_become_a_sample_or_one_error(data: bytes) -> None:
    with suppress(SampleError):
        decode_sample(data)


@given(st.integers(0, 200), st.integers(0, 255))
def test_law4_bytes_one_wrong_byte_is_a_sample_or_one_error(place: int, byte: int) -> None:
    data = bytearray(encode_sample(SAMPLE))
    data[place % len(data)] = byte
    with suppress(SampleError):
        assert decode_sample(bytes(data)).cases
