"""The gateway on a bare socket: what no well-behaved client does."""

import json
import socket

import httpx
import pytest
import trio
from fastapi.exceptions import RequestValidationError

from coordinator.gateway import errors
from coordinator.gateway.errors import from_validation
from coordinator.gateway.guard import GuardSettings
from coordinator.gateway.ports import Refused
from coordinator.gateway.server import BindError, is_loopback, parse_bind, serve_gateway
from specedge_p2p.tasks import TaskStatus
from tests.support.fake_generations import MODEL
from tests.support.gateways import Served, gateway

pytestmark = pytest.mark.filterwarnings(
    r"ignore:Async generator '(httpx|httpcore)\.:ResourceWarning"
)


async def connect(served: Served) -> trio.SocketStream:
    port = int(served.url.rsplit(":", 1)[1])
    return await trio.open_tcp_stream("127.0.0.1", port)


def completion(**fields: object) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": "Hi"} | fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


async def read_until(stream: trio.SocketStream, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        more = await stream.receive_some(65536)
        assert more, data
        data += more
    return data


async def read_to_end(stream: trio.SocketStream) -> bytes:
    data = b""
    while more := await stream.receive_some(65536):
        data += more
    return data


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/nothing", 404, "unknown_route"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "unknown_route"),
    ],
)
async def test_unknown_routes(method: str, path: str, status: int, code: str) -> None:
    async with gateway() as served, httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code
        assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "missing_required_parameter"),
        (b"[1]", "invalid_value"),
        (b'"text"', "invalid_value"),
        (b'{"model": "x"}', "missing_required_parameter"),
        (b'{"model": "x", "prompt": "\\ud83d\\ude00"}', "model_not_found"),
        (b'{"model": "demo-target", "prompt": "\\ud800"}', "invalid_value"),
        (b'{"model": "demo-target", "prompt": [1.5]}', "invalid_value"),
        (b'{"model": "demo-target", "prompt": [5000]}', "invalid_value"),
        (b'{"model": "demo-target", "prompt": ["a", "b"]}', "invalid_value"),
        (b'{"model": "demo-target", "prompt": "a", "temperature": NaN}', "invalid_value"),
        (b'{"model": "demo-target", "prompt": "a", "n": {"{x}": 1}}', "unsupported_parameter"),
        (b'{"model": "demo-target", "prompt": "a", "stream_options": {}}', "invalid_value"),
        (b'{"model": "demo-target", "prompt": "a", "volunteer\\ud800": 1}', "unknown_parameter"),
        (b'{"model": "demo-target", "prompt": "a", "\\ud800": 1, "n": 3}', "unsupported_parameter"),
    ],
)
async def test_malformed_bodies(body: bytes, code: str) -> None:
    async with gateway() as served, httpx.AsyncClient(base_url=served.url) as client:
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/completions", content=body, headers=headers)
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]["code"] == code
        assert served.generations.requests == []


@pytest.mark.parametrize("kind", ['"\\ud800"', '"image\\udfff"', '"' + "\\ud800" * 100 + '"'])
async def test_halves_of_surrogate_pairs_in_a_chat(kind: str) -> None:
    async with gateway() as served, httpx.AsyncClient(base_url=served.url) as client:
        content = f'[{{"type": {kind}}}]'
        body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": {content}}}]}}'
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/chat/completions", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


async def test_law6_privacy_a_misspelt_volunteers_is_not_served_with_the_default() -> None:
    async with gateway() as served, httpx.AsyncClient(base_url=served.url) as client:
        body = {"model": MODEL, "prompt": "Hi", "volunteer": "none"}
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["message"] == "unknown field 'volunteer': did you mean 'volunteers'?"
        assert error["param"] == "volunteer"
        assert served.generations.requests == []


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}])
async def test_a_body_that_is_not_called_json_is_told_the_header(headers: dict[str, str]) -> None:
    async with gateway() as served, httpx.AsyncClient(base_url=served.url) as client:
        body = json.dumps({"model": MODEL, "prompt": "Hi"}).encode()
        answer = await client.post("/v1/completions", content=body, headers=headers)
        assert answer.status_code == 400
        assert "send the header Content-Type: application/json" in answer.json()["error"]["message"]


async def test_a_model_that_is_not_there_names_the_one_that_is() -> None:
    async with gateway() as served, httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.post("/v1/completions", json={"model": "gpt-4", "prompt": "Hi"})
        assert answer.status_code == 404
        assert f"'{MODEL}'" in answer.json()["error"]["message"]


async def test_health_and_readiness() -> None:
    async with gateway() as served, httpx.AsyncClient(base_url=served.url) as client:
        assert (await client.get("/readyz")).status_code == 200
        served.generations.ready = (False, "loading")
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "loading")
        answer = await client.get("/healthz")
        assert answer.status_code == 200
        assert answer.json()["engine"] == {"ready": False, "reason": "loading"}
        assert answer.json()["num_nodes"] == 3


async def test_metrics_count_requests_and_tokens() -> None:
    async with gateway() as served, httpx.AsyncClient(base_url=served.url) as client:
        for is_stream in (True, False):
            body = {"model": MODEL, "prompt": "Hi", "stream": is_stream}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
        await client.get("/nothing")
        text = (await client.get("/metrics")).text
        assert 'specedge_gateway_tokens_total{kind="completion"} 6.0' in text
        assert 'specedge_gateway_tokens_total{kind="prompt"} 4.0' in text
        assert "specedge_time_to_first_token_seconds_count 2.0" in text
        assert "specedge_gateway_generations 0.0" in text
        assert 'specedge_http_requests_total{route="/v1/completions",status="200"} 2.0' in text
        assert 'specedge_http_requests_total{route="other",status="404"} 1.0' in text


async def test_law7_bounded_a_body_that_never_ends_is_cut() -> None:
    async with gateway(guard=GuardSettings(body_timeout_s=0.2)) as served:
        async with await connect(served) as stream:
            await stream.send_all(completion()[:-3])
            with trio.fail_after(2):
                answer = await read_to_end(stream)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer


async def test_law7_bounded_a_body_without_length_stops_at_the_limit() -> None:
    async with gateway(guard=GuardSettings(max_body_bytes=1000)) as served:
        async with await connect(served) as stream:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            await stream.send_all(head + b"800\r\n" + b"x" * 0x800 + b"\r\n")
            answer = await read_until(stream, b"request_too_large")
        assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("item", [b"-1", b'""', b"{}", b"0.5"])
async def test_law7_bounded_a_full_body_of_wrong_items_has_one_error(
    item: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[int] = []

    def counted(error: RequestValidationError) -> Refused:
        complaints.append(len(error.errors()))
        return from_validation(error)

    monkeypatch.setattr(errors, "from_validation", counted)
    start, end = b'{"model": "demo-target", "prompt": [', item + b"]}"
    num = (GuardSettings().max_body_bytes - len(start + end)) // len(item + b",")
    async with gateway() as served, httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        headers = {"content-type": "application/json"}
        body = start + (item + b",") * num + end
        answer = await client.post("/v1/completions", content=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_value"
        assert len(answer.content) < 1000
    assert complaints == [1]


async def test_law7_bounded_bodies_held_together() -> None:
    """What is refused comes through once others have been answered or have left."""
    async with gateway(guard=GuardSettings(max_held_bytes=1000)) as served:
        half, whole = completion(prompt="x" * 100, user="x" * 500), completion(user="x" * 800)
        async with await connect(served) as first, await connect(served) as second:
            await first.send_all(half[:-1])  # being read
            await second.send_all(whole)
            answer = await read_until(second, b"overloaded")
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer
            served.generations.say(hangs=True)
            await first.send_all(half[-1:])
            await served.until(num_live=1)  # being answered
            async with await connect(served) as third:
                await third.send_all(whole)
                assert (await read_until(third, b"overloaded")).startswith(b"HTTP/1.1 503")
        await served.until(num_live=0)
        served.generations.say(hangs=False)
        for _ in range(3):
            async with await connect(served) as stream:
                await stream.send_all(whole)
                assert (await read_until(stream, b"world")).startswith(b"HTTP/1.1 200")


async def test_law7_bounded_requests_in_flight() -> None:
    async with gateway(guard=GuardSettings(max_requests=1)) as served:
        served.generations.say(hangs=True)
        async with await connect(served) as first, await connect(served) as second:
            await first.send_all(completion(stream=True))
            await read_until(first, b"world")
            await second.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_until(second, b"\r\n")).startswith(b"HTTP/1.1 503")


async def test_law7_bounded_a_slow_reader_holds_its_generation_back() -> None:
    async with gateway() as served:
        served.generations.say(texts=("x" * 10_000,), is_endless=True)
        async with await connect(served) as stream:
            await stream.send_all(completion(stream=True))
            await served.until(num_live=1)
            num_before = -1
            while num_before != served.generations.num_texts:  # until the buffers are full
                num_before = served.generations.num_texts
                await trio.sleep(0.2)
            assert num_before < 2000
        await served.until(num_live=0)


async def test_a_reader_that_never_reads_does_not_hang_the_end() -> None:
    async with gateway() as served:
        served.generations.say(texts=("x" * 10_000,), is_endless=True)
        async with await connect(served) as stream:
            await stream.send_all(completion(stream=True))
            num_before = -1
            while num_before != served.generations.num_texts:
                num_before = served.generations.num_texts
                await trio.sleep(0.2)
            served.stop.set()
            with trio.fail_after(8):
                await served.stopped.wait()
        assert served.generations.num_live == 0


async def test_half_closed_client_frees_the_generation() -> None:
    async with gateway() as served:
        served.generations.say(hangs=True)
        async with await connect(served) as stream:
            await stream.send_all(completion(stream=True))
            await served.until(num_live=1)
            await stream.send_eof()
            with trio.fail_after(0.5):
                await served.until(num_live=0)


async def test_a_connection_serves_several_requests() -> None:
    async with gateway() as served, await connect(served) as stream:
        for _ in range(3):
            await stream.send_all(completion(stream=True))
            assert b"Hello" in await read_until(stream, b"0\r\n\r\n")


async def test_busy_port_is_one_clear_line() -> None:
    async with gateway() as served:
        bind = served.url.removeprefix("http://")
        with pytest.raises(BindError, match=r"Cannot serve on 127\.0\.0\.1:\d+: Address already"):
            await serve_gateway(served.app, bind, trio.Event())


@pytest.mark.parametrize("bind", ["", "localhost", ":80", "1.2.3.4:", "1.2.3.4:99999", "a:b"])
def test_malformed_bind(bind: str) -> None:
    with pytest.raises(BindError, match="not an address"):
        parse_bind(bind)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


async def test_serves_on_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as taken:
            taken.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6")
    async with gateway() as served:
        stop = trio.Event()
        async with trio.open_nursery() as nursery:

            async def serve(task_status: TaskStatus[str]) -> None:
                await serve_gateway(served.app, "[::1]:0", stop, task_status=task_status)

            url = await nursery.start(serve)
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"{url}/healthz")).status_code == 200
            stop.set()
