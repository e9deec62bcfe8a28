"""The demo's client: prompts through the public gateway, tokens with who guessed them."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import httpx
import trio

from specedge_p2p.errors import ClearError

# Four ordinary beginnings: on what follows the draft model's first guess is right about as often as
# on held-out files (0.69), and the text neither ends at once nor merely repeats itself.
PROMPTS = (
    "class Node:\n    def __init__(self, value, left=None, right=None):\n",
    "def test_sort(self):\n    items = [3, 1, 2]\n",
    "class Shape:\n    def area(self):\n        raise NotImplementedError\n\n"
    "class Circle(Shape):\n",
    "import socket\n\ndef serve(port):\n    sock = socket.socket(",
)


class GatewayError(ClearError):
    """The gateway answered with an error."""


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int
    temperature: float
    seed: int | None


@dataclass(slots=True)
class Generation:
    """What came back for one prompt."""

    prompt: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    guessed_by: list[str] = field(default_factory=list)
    num_rounds: int = 0
    num_drafted_rounds: int = 0
    num_drafted_tokens: int = 0
    num_accepted_by_node: Counter[str] = field(default_factory=Counter)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(slots=True)
class Batch:
    """Several prompts served at once, and how long they took together."""

    generations: list[Generation]
    wall_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        return sum(generation.num_tokens for generation in self.generations)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s

    @property
    def num_rounds(self) -> int:
        return sum(generation.num_rounds for generation in self.generations)

    @property
    def acceptance_length(self) -> float | None:
        """Tokens after the first of each session, per round."""
        num_firsts = sum(1 for generation in self.generations if generation.num_tokens)
        return (self.num_tokens - num_firsts) / self.num_rounds if self.num_rounds else None

    @property
    def acceptance_length_drafted(self) -> float | None:
        num_rounds = sum(generation.num_drafted_rounds for generation in self.generations)
        num_tokens = sum(generation.num_drafted_tokens for generation in self.generations)
        return num_tokens / num_rounds if num_rounds else None

    @property
    def num_accepted_by_node(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for generation in self.generations:
            total.update(generation.num_accepted_by_node)
        return total


async def run_batch(
    gateway: str,
    prompts: Sequence[str],
    sampling: Sampling,
    volunteers: str,
    on_change: Callable[[Batch], None] = lambda _batch: None,
) -> Batch:
    """Serve all prompts at once. Raises GatewayError."""
    batch = Batch([Generation(prompt) for prompt in prompts])
    start_s = trio.current_time()
    timeout = httpx.Timeout(60.0, read=None)
    async with httpx.AsyncClient(base_url=gateway, timeout=timeout) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def run(generation: Generation) -> None:
            request = _request(model, generation.prompt, sampling, volunteers)
            async for chunk in stream_chunks(client, request):
                _add(generation, chunk)
                on_change(batch)

        async with trio.open_nursery() as nursery:
            for generation in batch.generations:
                nursery.start_soon(run, generation)
    batch.wall_s = trio.current_time() - start_s
    return batch


def _request(model: str, prompt: str, sampling: Sampling, volunteers: str) -> dict[str, object]:
    request: dict[str, object] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "stream": True,
        "volunteers": volunteers,
        "specedge": {"sources": True},
    }
    if sampling.seed is not None:
        request["seed"] = sampling.seed
    return request


async def stream_chunks(
    client: httpx.AsyncClient, request: dict[str, object]
) -> AsyncIterator[dict[str, object]]:
    """The chunks of one streamed completion. Raises GatewayError."""
    async with client.stream("POST", "/v1/completions", json=request) as response:
        if response.status_code != 200:
            raise GatewayError((await response.aread()).decode("utf-8", "replace"))
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise GatewayError(chunk["error"]["message"])
            yield chunk


def _add(generation: Generation, chunk: dict[str, object]) -> None:
    for choice in _items(chunk.get("choices")):
        generation.text += str(choice.get("text") or "")
    extra = chunk.get("specedge")
    if not isinstance(extra, dict):
        return
    for token_id, guessed_by in extra.get("tokens", []):
        generation.token_ids.append(token_id)
        generation.guessed_by.append(guessed_by)
    if "num_rounds" in extra:
        generation.num_rounds = extra["num_rounds"]
        generation.num_drafted_rounds = extra["num_drafted_rounds"]
        generation.num_drafted_tokens = extra["num_drafted_tokens"]
        generation.num_accepted_by_node.update(extra["num_accepted_by_node"])


def _items(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else []
