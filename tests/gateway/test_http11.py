"""One connection, whatever its client sends, is no concern of the others."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from hypercorn.config import Config

from coordinator.gateway import http11
from coordinator.gateway.server import ServerSettings
from tests.gateway.test_server import completion, connect, read_to_end, read_until
from tests.support.gateways import Served, gateway

UPGRADE = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "
H2C = UPGRADE + b"h2c\r\nHTTP2-Settings: a\r\n\r\n"
WEBSOCKET = (
    UPGRADE + b"websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    b"dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4\0" + bytes(4)
PRIORITIES = b"".join(
    b"\0\0\5\2\0" + struct.pack(">IIB", 2 * number + 1, 0, 15) for number in range(1100)
)
PIPELINED = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def unharmed(served: Served) -> AsyncIterator[None]:
    """A stream that runs beside it goes on, and new requests are answered."""
    served.generations.say(is_endless=True)
    async with await connect(served) as bystander:
        await bystander.send_all(completion(stream=True))
        await read_until(bystander, b"world")
        yield
        await read_until(bystander, b"world")
        async with httpx.AsyncClient(base_url=served.url) as client:
            assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        H2C,
        PREFACE + PRIORITIES,
        WEBSOCKET + b"\x81\x85early",
        WEBSOCKET + PIPELINED,
        b"\xff\xfe" * 500,
        b"GET /\xff%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\nmore",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
        completion()[:-4],
    ],
)
async def test_a_connection_ends_alone(sent: bytes) -> None:
    async with gateway() as served, unharmed(served), await connect(served) as stream:
        await stream.send_all(sent)
        await stream.send_eof()
        with trio.fail_after(5):
            await read_to_end(stream)


async def test_a_fault_in_a_connection_ends_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = http11._Http11.handle

    async def faulty(self: object, event: object) -> None:
        if b"broken" in getattr(event, "data", b""):
            raise RuntimeError("a fault")
        await handle(self, event)

    monkeypatch.setattr(http11._Http11, "handle", faulty)
    async with gateway() as served, unharmed(served), await connect(served) as stream:
        await stream.send_all(b"broken")
        assert await read_to_end(stream) == b""


@pytest.mark.parametrize("seed", range(4))
async def test_garbage_on_a_connection_harms_no_other(seed: int) -> None:
    random = Random(seed)
    whole = [completion(), completion(stream=True), H2C, WEBSOCKET, PREFACE, PIPELINED * 3]
    async with gateway() as served, unharmed(served):
        for _ in range(50):
            sent = bytearray(random.choice(whole))
            for _ in range(random.randrange(4)):
                place = random.randrange(len(sent))
                sent[place : place + random.randrange(3)] = random.randbytes(random.randrange(3))
            async with await connect(served) as stream:
                await stream.send_all(bytes(sent))
                if random.random() < 0.5:
                    with trio.move_on_after(0.01):
                        await stream.receive_some(1000)


@pytest.mark.parametrize("sent", [H2C, WEBSOCKET])
async def test_a_wish_for_another_protocol_is_answered_in_this_one(sent: bytes) -> None:
    async with gateway() as served, await connect(served) as stream:
        for _ in range(2):
            await stream.send_all(sent)
            answer = await read_until(stream, b'"num_nodes":3')
            assert answer.startswith(b"HTTP/1.1 200 ")


async def test_pipelined_requests_are_answered_in_turn() -> None:
    async with gateway() as served, await connect(served) as stream:
        await stream.send_all(completion(stream=True) + PIPELINED)
        await stream.send_all(PIPELINED)
        answer = b""
        while answer.count(b'"num_nodes":3') < 2:
            more = await stream.receive_some(65_536)
            assert more
            answer += more
        assert answer.index(b"[DONE]") < answer.index(b"num_nodes")


async def test_law7_bounded_what_is_kept_of_requests_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listen, sizes = http11._Pause._listen, [0]

    async def measured(self: http11._Pause) -> None:
        try:
            await listen(self)
        finally:
            sizes.append(len(self._protocol.connection.trailing_data[0]))

    monkeypatch.setattr(http11._Pause, "_listen", measured)

    async def read(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await read_to_end(stream)

    async with (
        gateway() as served,
        await connect(served) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read, stream)
        with suppress(trio.BrokenResourceError):  # after a thousand requests it has had enough
            for _ in range(300):
                await stream.send_all(PIPELINED * 100)
    assert 0 < max(sizes) <= 3 * http11.MAX_AHEAD_BYTES


@pytest.mark.parametrize("sent", [PIPELINED, PIPELINED * 2, PIPELINED * 5])
async def test_who_sends_no_more_still_gets_short_answers(sent: bytes) -> None:
    async with gateway() as served, await connect(served) as stream:
        await stream.send_all(sent)
        await stream.send_eof()
        with trio.fail_after(4):
            answer = await read_to_end(stream)
        assert answer.count(b'"num_nodes":3') == len(sent) // len(PIPELINED)


@pytest.mark.parametrize("head", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nConnection: close\r\n"])
async def test_a_connection_that_is_not_kept_ends_with_its_answer(head: bytes) -> None:
    async with gateway() as served, await connect(served) as stream:
        await stream.send_all(completion(stream=True).replace(b"HTTP/1.1\r\n", head, 1))
        with trio.fail_after(4):  # less than an idle connection is kept
            assert b"[DONE]" in await read_to_end(stream)


async def test_a_connection_that_is_kept_for_nothing_ends_after_a_stream() -> None:
    settings = ServerSettings(idle_timeout_s=0.2)
    async with gateway(server=settings) as served, await connect(served) as stream:
        await stream.send_all(completion(stream=True))
        with trio.fail_after(10):
            assert b"[DONE]" in await read_to_end(stream)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("behind", [b"", b"\r\n", PIPELINED, PIPELINED * 100])
async def test_a_client_that_leaves_frees_the_generation(is_stream: bool, behind: bytes) -> None:
    async with gateway() as served:
        served.generations.say(hangs=True)
        async with await connect(served) as stream:
            await stream.send_all(completion(stream=is_stream) + behind)
            await served.until(num_live=1)
        with trio.fail_after(5):
            await served.until(num_live=0)


async def test_an_application_that_does_not_listen_is_told_of_the_end_all_the_same() -> None:
    config, may_listen = Config(), trio.Event()
    heard: list[str] = []

    async def app(scope: object, receive: Callable[[], Awaitable[Any]], *_: object) -> None:
        await may_listen.wait()
        while not heard or heard[-1] != "http.disconnect":
            heard.append((await receive())["type"])

    async def send(_message: object) -> None:
        await trio.lowlevel.checkpoint()

    async def fill(put: http11.Put) -> None:
        body = {"type": "http.request", "body": b"x", "more_body": True}
        for _ in range(config.max_app_queue_size):
            await put(body)
        with pytest.raises(trio.ClosedResourceError):
            await put(body)

    with trio.fail_after(10):
        async with http11._Tasks() as tasks, trio.open_nursery() as nursery:
            put = await tasks.spawn_app(app, config, {}, send)
            nursery.start_soon(fill, put)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                await put({"type": "http.disconnect"})
            may_listen.set()
    assert heard == ["http.request"] * config.max_app_queue_size + ["http.disconnect"]
