"""The real openai client against a real coordinator that asks for keys."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import openai
import pytest
import trio
from openai import AsyncOpenAI

from specedge_p2p.lm.text import Tokenizer
from tests.support.network import Coordinator, Site, run_python, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    # The client leaves generators of its own to the garbage collector when a stream ends.
    pytest.mark.filterwarnings(
        r"ignore:Async generator '(openai|httpx2?|httpcore2?)\.:ResourceWarning"
    ),
]

MODEL = "demo-target"
PROMPT = "def read(path):\n    with open(path) as f:\n"
SEED = 3


class Host:
    """A coordinator and what its host does on the command line."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def start(self) -> "Host":
        self.coordinator: Coordinator = await self.site.coordinator(
            "openai", "--step-floor", "0.01", "--require-keys"
        )
        self.key = await self.create_key("tests")
        return self

    async def create_key(self, label: str, *arguments: str) -> str:
        return (await self.keys("create", label, *arguments)).strip()

    async def keys(self, *arguments: str) -> str:
        home = ("--home", str(self.coordinator.home))
        done = await run_python("coordinator.cli", "keys", *arguments, *home)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    site = Site(tmp_path_factory.mktemp("openai"))
    try:
        yield trio.run(Host(site).start)
    finally:
        trio.run(site.close)


@asynccontextmanager
async def client_of(host: Host, key: str | None = None) -> AsyncIterator[AsyncOpenAI]:
    url = f"{host.coordinator.gateway}/v1"
    async with AsyncOpenAI(base_url=url, api_key=key or host.key, max_retries=0) as client:
        yield client


async def test_lists_its_model(host: Host) -> None:
    async with client_of(host) as client:
        models = await client.models.list()
        assert [model.id for model in models.data] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_chat(host: Host) -> None:
    async with client_of(host) as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": PROMPT}], max_tokens=12, seed=SEED
        )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


async def test_completion_streamed_and_not_with_usage_and_seed(host: Host) -> None:
    async with client_of(host) as client:
        whole = await client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0.8, seed=SEED
        )
        stream = await client.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=24,
            temperature=0.8,
            seed=SEED,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        other = await client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0.8, seed=SEED + 1
        )
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    assert other.choices[0].text != text
    assert whole.usage is not None
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 24
    assert len(chunks) > 4


async def test_chat_stream_with_usage(host: Host) -> None:
    async with client_of(host) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=10,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 10


async def test_stop_string_across_a_border_between_tokens(host: Host) -> None:
    tokenizer = Tokenizer.load(MODEL)
    prompt_ids = list(tokenizer.encode(PROMPT))
    async with client_of(host) as client:
        free = await client.completions.create(
            model=MODEL,
            prompt=prompt_ids,
            max_tokens=40,
            temperature=0,
            extra_body={"specedge": {"sources": True}},
        )
        text = free.choices[0].text
        assert free.model_extra is not None
        token_ids = free.model_extra["specedge"]["token_ids"]
        stop = stop_across_a_border(tokenizer, token_ids, text)
        expected = text[: text.index(stop)]
        stopped = await client.completions.create(
            model=MODEL, prompt=prompt_ids, max_tokens=40, temperature=0, stop=[stop]
        )
        stream = await client.completions.create(
            model=MODEL, prompt=prompt_ids, max_tokens=40, temperature=0, stop=stop, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert stopped.choices[0].text == expected
    assert stopped.choices[0].finish_reason == "stop"
    assert "".join(c.choices[0].text for c in chunks if c.choices) == expected
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def stop_across_a_border(tokenizer: Tokenizer, token_ids: list[int], text: str) -> str:
    """The end of one token and the beginning of the next, from the middle of a text."""
    for count in range(8, len(token_ids) - 2):
        border = len(tokenizer.decode(token_ids[:count]))
        stop = text[border - 2 : border + 1]
        if len(stop.strip()) == 3 and text.index(stop) == border - 2:
            return stop
    raise AssertionError(f"no border in {text!r}")


@pytest.mark.parametrize(
    ("changed", "error", "code"),
    [
        ({"model": "no-such"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded"),
        ({"prompt": "x " * 6000}, openai.BadRequestError, "context_length_exceeded"),
        ({"temperature": -1}, openai.BadRequestError, None),
        ({"n": 2}, openai.BadRequestError, None),
    ],
)
async def test_errors(
    host: Host, changed: dict[str, object], error: type[openai.APIStatusError], code: str | None
) -> None:
    request: dict[str, object] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4} | changed
    async with client_of(host) as client:
        with pytest.raises(error) as caught:
            await client.completions.create(**request)  # type: ignore[call-overload]
    assert code is None or caught.value.code == code


async def test_cancelling_frees_the_session(host: Host) -> None:
    async def num_sessions() -> float:
        return await host.coordinator.metric("specedge_sessions")

    async def none_left() -> bool:
        return await num_sessions() == 0

    async with client_of(host) as client:
        stream = await client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=1500, stream=True, temperature=0
        )  # which goes on to the last of them
        await anext(stream)
        assert await num_sessions() == 1
        await stream.close()
        await until(none_left, "the session is freed", within_s=20)


async def test_keys_are_created_listed_and_revoked(host: Host) -> None:
    key = await host.create_key("somebody", "--volunteers", "none")
    listed = await host.keys("list")
    assert "somebody" in listed
    assert key not in listed
    key_id = next(line.split()[1] for line in listed.splitlines() if "somebody" in line)
    async with client_of(host, key) as client:
        assert (await client.models.list()).data
        await host.keys("revoke", key_id)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    async with client_of(host, "sk-guessed") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
