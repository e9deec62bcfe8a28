"""The real openai client against the gateway on a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import openai
import pytest
import trio
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from coordinator.gateway.auth import ApiKey
from coordinator.gateway.guard import GuardSettings
from coordinator.gateway.limits import LimitSettings
from coordinator.gateway.ports import Refused
from tests.support.fake_generations import MODEL, NODE
from tests.support.gateways import FakeKeys, Served, gateway

# The client leaves generators of its own to the garbage collector when a stream ends.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Async generator '(openai|httpx2?|httpcore2?)\.:ResourceWarning"
)


@asynccontextmanager
async def client_of(served: Served, key: str = "sk-any") -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
        yield client


HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


async def test_lists_and_retrieves_models() -> None:
    async with gateway() as served, client_of(served) as client:
        models = [model.id async for model in client.models.list()]
        assert models == [MODEL]
        assert (await client.models.retrieve(MODEL)).created == 1_700_000_000
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("org/other")
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"


async def test_chat_completion() -> None:
    async with gateway() as served, client_of(served) as client:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "developer", "content": [{"type": "text", "text": "Be "}]},
                {"role": "user", "content": "kind"},
            ],
            seed=7,
            stop=["\n", "END"],
            temperature=0.7,
            max_completion_tokens=9,
            extra_body={"top_k": 5, "min_p": 0.1, "volunteers": "none", "ignore_eos": True},
        )
        assert answer.choices[0].message.content == "Hello, world"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 7 + 3
        assert answer._request_id is not None
        assert answer._request_id.startswith("req_")
        [request] = served.generations.requests
        assert served.generations.chats == [
            [{"role": "system", "content": "Be "}, {"role": "user", "content": "kind"}]
        ]
        assert (request.seed, request.stop, request.max_tokens) == (7, ("\n", "END"), 9)
        assert (request.sampling.temperature, request.sampling.top_k) == (0.7, 5)
        assert (request.sampling.min_p, request.sampling.top_p) == (0.1, 1.0)
        assert (request.volunteers, request.ignore_eos) == ("none", True)


async def test_chat_runs_to_the_context_limit_and_completion_16_tokens_by_default() -> None:
    async with gateway() as served, client_of(served) as client:
        await client.chat.completions.create(model=MODEL, messages=HELLO)
        await client.completions.create(model=MODEL, prompt="Hi")
        limits = [request.max_tokens for request in served.generations.requests]
        assert limits == [None, 16]


@pytest.mark.parametrize("prompt", ["abc", ["abc"], [97, 98, 99]])
async def test_completion_takes_text_and_token_ids(prompt: str | list[str] | list[int]) -> None:
    async with gateway() as served, client_of(served) as client:
        answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=3)
        assert answer.choices[0].text == "Hello, world"
        assert served.generations.requests[0].prompt_ids == (97, 98, 99)


async def test_chat_stream_with_usage() -> None:
    async with gateway() as served, client_of(served) as client:
        served.generations.say(reason="length")
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
        assert "".join(texts) == "Hello, world"
        assert chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3
        assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_completion_stream() -> None:
    async with gateway() as served, client_of(served) as client:
        stream = await client.completions.create(model=MODEL, prompt="Hi", stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello, world"
        assert chunks[-1].choices[0].finish_reason == "stop"


async def test_sources_tell_who_guessed_each_token() -> None:
    extra = {"specedge": {"sources": True}}
    async with gateway() as served, client_of(served) as client:
        stream = await client.completions.create(
            model=MODEL, prompt="Hi", stream=True, extra_body=extra
        )
        extensions = [(chunk.model_extra or {})["specedge"] async for chunk in stream]
        tokens = [token for extension in extensions[:-1] for token in extension["tokens"]]
        assert tokens == [[0, ""], [1, NODE], [2, ""]]
        assert extensions[-1]["num_accepted_by_node"] == {NODE: 1}
        assert extensions[-1]["session_id"] == "session-1"

        answer = await client.completions.create(model=MODEL, prompt="Hi", extra_body=extra)
        extension = (answer.model_extra or {})["specedge"]
        assert extension["token_ids"] == [0, 1, 2]
        assert extension["num_drafted_rounds"] == 1


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"top_p": -0.1}, "invalid_value", "top_p"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"seed": 2**63}, "invalid_value", "seed"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "assistant"}]}, "invalid_value", None),
        (
            {"messages": [{"role": "user", "content": "x" * 300}]},
            "context_length_exceeded",
            "messages",
        ),
        ({"max_tokens": 255}, "context_length_exceeded", "messages"),
        ({"volunteers": "some"}, "invalid_value", "volunteers"),
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "unsupported_parameter",
            "messages",
        ),
    ],
)
async def test_bad_requests(body: dict[str, object], code: str, param: str | None) -> None:
    async with gateway() as served, client_of(served) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model=MODEL,
                messages=HELLO,
                extra_body=body,
            )
        assert caught.value.code == code
        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"
        assert caught.value.request_id is not None
        assert served.generations.requests == []


async def test_keys() -> None:
    keys = FakeKeys(secret=ApiKey("k1", "someone", "allowed"))
    async with gateway(keys=keys) as served:
        for wrong in ("nothing", "x" * 1000):
            async with client_of(served, wrong) as client:
                with pytest.raises(openai.AuthenticationError) as caught:
                    await client.models.list()
                assert caught.value.code == "invalid_api_key"
        async with client_of(served, "secret") as client:
            await client.completions.create(model=MODEL, prompt="Hi")
            await client.completions.create(
                model=MODEL, prompt="Hi", extra_body={"volunteers": "any"}
            )
        requests = served.generations.requests
        assert [request.key_id for request in requests] == ["k1", "k1"]
        assert [request.volunteers for request in requests] == ["allowed", "any"]


async def test_too_many_requests_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    # In the middle of a minute: of what came before its end less counts right after it.
    monkeypatch.setattr("limits.storage.memory.time", SimpleNamespace(time=lambda: 1_000_000_020.0))
    async with gateway(limits=LimitSettings(requests_per_minute=2)) as served:
        async with client_of(served) as client:
            await client.models.list()
            await client.models.list()
            with pytest.raises(openai.RateLimitError) as caught:
                await client.models.list()
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


async def test_too_many_at_once() -> None:
    async with gateway(limits=LimitSettings(max_concurrent=1)) as served:
        served.generations.say(hangs=True)
        async with client_of(served) as client:
            stream = await client.completions.create(model=MODEL, prompt="Hi", stream=True)
            for is_stream in (True, False):
                with pytest.raises(openai.RateLimitError):
                    await client.completions.create(model=MODEL, prompt="Hi", stream=is_stream)
            await stream.close()
            await served.until(num_live=0)
            served.generations.say(hangs=False)
            await client.completions.create(model=MODEL, prompt="Hi")


@pytest.mark.parametrize("is_stream", [True, False])
async def test_refused_by_the_coordinator(is_stream: bool) -> None:
    async with gateway() as served, client_of(served) as client:
        refusal = Refused(503, "no_room", "All places are taken.", retry_after_s=1.5)
        served.generations.say(refusal=refusal)
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model=MODEL, prompt="Hi", stream=is_stream)
        assert caught.value.status_code == 503
        assert caught.value.code == "no_room"
        assert caught.value.response.headers["retry-after"] == "2"


async def test_lost_midway() -> None:
    lost = Refused(500, "engine_lost", "The engine is gone.")
    async with gateway() as served, client_of(served) as client:
        served.generations.say(lost=lost)
        texts = []

        async def read() -> None:
            stream = await client.completions.create(model=MODEL, prompt="Hi", stream=True)
            async for chunk in stream:
                texts.append(chunk.choices[0].text)  # noqa: PERF401 - it ends in the middle

        with pytest.raises(openai.APIError) as caught:
            await read()
        assert "".join(texts) == "Hello, world"
        assert caught.value.code == "engine_lost"
        with pytest.raises(openai.InternalServerError) as failed:
            await client.completions.create(model=MODEL, prompt="Hi")
        assert failed.value.code == "engine_lost"
        assert failed.value.response.headers["x-should-retry"] == "false"


async def test_a_bug_is_answered_in_the_clients_shape(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway() as served, client_of(served) as client:
        served.generations.say(bug=ZeroDivisionError("planted"))
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model=MODEL, prompt="Hi")
        assert caught.value.code == "internal_error"
        assert "planted" not in caught.value.message
        assert (caught.value.request_id or "").startswith("req_")
        served.generations.say(bug=None)
        await client.completions.create(model=MODEL, prompt="Hi")
    assert "planted" in caplog.text


async def test_body_over_the_limit() -> None:
    async with gateway(guard=GuardSettings(max_body_bytes=1000)) as served:
        async with client_of(served) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.completions.create(model=MODEL, prompt="x" * 2000)
        assert caught.value.status_code == 413
        assert caught.value.code == "request_too_large"


async def test_engine_is_loading() -> None:
    async with gateway() as served, client_of(served) as client:
        served.generations.ready = (False, "The engine is loading its model.")
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model=MODEL, prompt="Hi")
        assert caught.value.status_code == 503
        assert "retry-after" in caught.value.response.headers


async def test_closing_a_stream_frees_the_generation() -> None:
    async with gateway() as served, client_of(served) as client:
        served.generations.say(is_endless=True, delay_s=0.01)
        stream = await client.completions.create(model=MODEL, prompt="Hi", stream=True)
        await anext(stream)
        assert served.generations.num_live == 1
        await stream.close()
        with trio.fail_after(0.5):
            await served.until(num_live=0)


async def test_leaving_without_the_answer_frees_the_generation() -> None:
    async with gateway() as served, client_of(served) as client:
        served.generations.say(hangs=True)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                await client.completions.create(model=MODEL, prompt="Hi")

            nursery.start_soon(ask)
            await served.until(num_live=1)
            nursery.cancel_scope.cancel()
        with trio.fail_after(0.5):
            await served.until(num_live=0)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_stopping_ends_answers_with_an_error(is_stream: bool) -> None:
    async with gateway() as served, client_of(served) as client:
        served.generations.say(hangs=True)

        async def ask() -> None:
            answer = await client.completions.create(model=MODEL, prompt="Hi", stream=is_stream)
            if isinstance(answer, openai.AsyncStream):
                async for _ in answer:
                    pass

        async def stop() -> None:
            await served.until(num_live=1)
            served.stop.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            with pytest.raises(openai.APIError) as caught:
                await ask()
        assert caught.value.code == "shutting_down"
        with trio.fail_after(1):
            await served.stopped.wait()
