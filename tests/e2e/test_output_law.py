"""Law 1 on real processes: the text is the target's own, whoever guesses, however badly."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import trio
from transformers import AutoModelForCausalLM

from specedge_p2p.demo.client import Batch, Sampling
from specedge_p2p.lm.files import find_model
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.text import Tokenizer
from specedge_p2p.noise import noise_key, seed_bytes
from tests.reference import decode
from tests.support.network import (
    Coordinator,
    Site,
    Watch,
    generate,
    guessers,
    token_ids,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.alone]

SEED = 11
MAX_TOKENS = 32
TEMPERATURES = (0.0, 0.8)
PROMPTS = (
    "def parse_header(line):\n    name, _, value = line.partition(':')\n",
    "class Queue:\n    def __init__(self, size):\n        self.size = size\n",
    "import json\n\ndef load(path):\n    with open(path) as f:\n",
    "for i in range(10):\n    if i % 2 == 0:\n",
    "def test_addition(self):\n    self.assertEqual(",
    "try:\n    value = int(text)\nexcept ValueError:\n",
    "    def __repr__(self):\n        return '<%s at %s>' % (",
    "class Error(Exception):\n    pass\n\nclass NotFound(",
    "def gcd(a, b):\n    while b:\n",
    "if __name__ == '__main__':\n    main(",
)


@dataclass(frozen=True)
class Expected:
    """What the unmodified model says, per temperature, prompt by prompt."""

    token_ids: dict[float, list[list[int]]]


@pytest.fixture(scope="module")
def expected() -> Expected:
    tokenizer = Tokenizer.load("demo-target")
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        find_model("demo-target"), dtype=torch.float64
    ).eval()
    ends = (int(model.config.eos_token_id),)

    def said(text: str, temperature: float) -> list[int]:
        prompt_ids = list(tokenizer.encode(text))
        key = noise_key(seed_bytes(SEED), prompt_ids)
        sampling = SamplingParams(temperature)
        return decode(model, prompt_ids, sampling, key, MAX_TOKENS, ends)

    return Expected({t: [said(text, t) for text in PROMPTS] for t in TEMPERATURES})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("output"))
    yield site
    trio.run(site.close)


@pytest.fixture(scope="module")
def coordinator(site: Site) -> Coordinator:
    # The padding stands for a bigger model: it leaves nodes the time that they have there.
    return trio.run(site.coordinator, "output", "--step-floor", "0.03")


async def run_all(
    coordinator: Coordinator, watch: Watch | None = None, volunteers: str = "any"
) -> dict[float, Batch]:
    """Ten prompts at both temperatures, all twenty sessions at once."""
    batches: dict[float, Batch] = {}

    async def run(temperature: float, watch: Watch | None) -> None:
        sampling = Sampling(MAX_TOKENS, temperature, SEED)
        batches[temperature] = await generate(coordinator, PROMPTS, sampling, volunteers, watch)

    async with trio.open_nursery() as nursery:
        for temperature in TEMPERATURES:
            nursery.start_soon(run, temperature, watch)
            watch = None
    return batches


def assert_equal(batches: dict[float, Batch], expected: Expected) -> None:
    assert {t: token_ids(batch) for t, batch in batches.items()} == expected.token_ids


async def test_law1_output_without_nodes(coordinator: Coordinator, expected: Expected) -> None:
    assert await coordinator.num_nodes() == 0
    batches = await run_all(coordinator)
    assert_equal(batches, expected)
    assert guessers(batches.values()) <= {"", "ngram"}


@pytest.mark.parametrize("num_nodes", [1, 3])
async def test_law1_output_with_nodes(
    site: Site, coordinator: Coordinator, expected: Expected, num_nodes: int
) -> None:
    nodes = [await site.node(f"of-{num_nodes}-{i}", coordinator) for i in range(num_nodes)]
    await coordinator.until_nodes(num_nodes)
    batches = await run_all(coordinator)
    assert_equal(batches, expected)
    assert guessers(batches.values()) & {node.peer_id for node in nodes}
    for node in nodes:
        node.signal(signal.SIGINT)
    await coordinator.until_nodes(0)


async def test_law1_output_with_a_random_a_replaying_and_a_killed_node(
    site: Site, coordinator: Coordinator, expected: Expected
) -> None:
    guessing = await site.node("random", coordinator, "--drafting", "random")
    await site.node("replay", coordinator, "--drafting", "replay")
    victim = await site.node("victim", coordinator)
    await coordinator.until_nodes(3)
    watch = Watch()
    batches: dict[float, Batch] = {}

    async def run() -> None:
        batches.update(await run_all(coordinator, watch))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await watch.until_tokens(6)
        victim.signal(signal.SIGKILL)
        await victim.child.process.wait()
    assert_equal(batches, expected)
    await coordinator.until_nodes(2)
    assert_equal(await run_all(coordinator), expected)
    # One is caught and loses its link each time, the other says nothing but what is legal.
    assert "broke the protocol" in coordinator.log()
    assert "the link ended" not in guessing.log()


async def test_law3_critical_path_has_no_more_rounds_with_useless_nodes(
    site: Site, coordinator: Coordinator
) -> None:
    await site.node("useless", coordinator, "--drafting", "random")
    await coordinator.until_nodes(3)
    useless = num_rounds(await run_all(coordinator))
    alone = num_rounds(await run_all(coordinator, volunteers="none"))
    # What the n-gram guess is worth is learned as steps go by, so equal runs differ a little.
    assert useless <= 1.03 * alone


def num_rounds(batches: dict[float, Batch]) -> int:
    return sum(each.num_rounds for batch in batches.values() for each in batch.generations)


async def test_law1_output_with_everything_at_once(site: Site, expected: Expected) -> None:
    """Own levels, capped steps, two draft models on a session and a standby that takes over."""
    drafting = ("--engine-draft", "demo-draft", "--max-batch", "6", "--step-floor", "0.03")
    coordinator = await site.coordinator("everything", *drafting)
    small = await site.node("small", coordinator, "--draft-model", "demo-draft")
    await site.node("large", coordinator, "--draft-model", "demo-target")
    await coordinator.until_nodes(2)
    watch = Watch()
    batches: dict[float, Batch] = {}

    async def run() -> None:
        batches.update(await run_all(coordinator, watch))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await watch.until_tokens(4)
        small.signal(signal.SIGKILL)
    assert_equal(batches, expected)
    assert await coordinator.metric("specedge_engine_levels_total") > 0
    coordinator.engine().kill()
    assert_equal(await run_all(coordinator), expected)
