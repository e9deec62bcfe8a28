"""The engine's own draft model in the whole network: planned, run and learned, in virtual time."""

from dataclasses import replace

import pytest
import trio
import trio.testing

from coordinator.engine.inline import InlineEngine
from coordinator.engine.messages import FromEngine, StepDone
from coordinator.scheduler.plan import FixedTree
from coordinator.settings import Limits
from specedge_p2p.lm.toy import ToyModel, ToyParams
from tests.support.swarm import ENDLESS, SwarmSettings, running_swarm

OWN = replace(ENDLESS, perturbation=0.5)
USELESS = replace(ENDLESS, perturbation=4.0)
PROMPTS = ("the quick", "brown fox", "jumps over")
NUM_TOKENS = 80


async def serve(
    monkeypatch: pytest.MonkeyPatch, settings: SwarmSettings, drafts: tuple[ToyParams, ...] = ()
) -> tuple[float, list[StepDone]]:
    """Seconds until all prompts are answered, rightly, and the engine's steps."""
    steps: list[StepDone] = []
    receive = InlineEngine.receive

    async def listen(engine: InlineEngine) -> FromEngine:
        message = await receive(engine)
        if isinstance(message, StepDone):
            steps.append(message)
        return message

    monkeypatch.setattr(InlineEngine, "receive", listen)
    models = [ToyModel(params, name="toy-draft") for params in drafts]
    async with running_swarm(settings, models, ENDLESS) as swarm:
        started_s = trio.current_time()

        async def answer(seed: int, prompt: str) -> None:
            got = await swarm.generate(prompt, max_tokens=NUM_TOKENS, seed=seed)
            assert got.token_ids == swarm.expected(prompt, max_tokens=NUM_TOKENS, seed=seed)

        async with trio.open_nursery() as nursery:
            for seed, prompt in enumerate(PROMPTS):
                nursery.start_soon(answer, seed, prompt)
        return trio.current_time() - started_s, steps


async def test_an_engine_that_drafts_is_faster_alone_and_beside_a_node(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_s, steps = await serve(monkeypatch, SwarmSettings())
    assert sum(step.num_levels for step in steps) == 0
    alone_s, steps = await serve(monkeypatch, SwarmSettings(engine_draft=OWN))
    assert sum(step.num_levels for step in steps) > len(steps)
    assert alone_s < 0.7 * plain_s
    both_s, steps = await serve(monkeypatch, SwarmSettings(engine_draft=OWN), (OWN,))
    assert both_s < 1.05 * alone_s
    own = [s.own for step in steps for result in step.results for s in result.sources]
    nodes = [s.source for step in steps for result in step.results for s in result.sources]
    assert any(own)
    assert any(nodes)


async def test_law3_critical_path_a_useless_draft_is_found_out(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its guesses were worth lowers its factor until levels do not pay any more."""
    plain_s, _ = await serve(monkeypatch, SwarmSettings())
    useless = SwarmSettings(engine_draft=USELESS, engine_level_time_s=0.02)
    useless_s, steps = await serve(monkeypatch, useless)
    half = len(steps) // 2
    assert sum(step.num_levels for step in steps[:half]) > 0
    assert sum(step.num_levels for step in steps[half:]) == 0
    assert useless_s < 1.15 * plain_s  # what it took to find out


async def test_a_fixed_tree_is_grown_in_every_step(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(engine_tree=FixedTree(depth=4, width=2))
    _, steps = await serve(monkeypatch, SwarmSettings(engine_draft=OWN, limits=limits))
    decoding = [s for s in steps if any(len(r.token_ids) and r.num_rows for r in s.results)]
    assert {step.num_levels for step in decoding} <= {3, 4}
    assert sum(step.num_levels == 4 for step in decoding) > 0.9 * len(decoding)


async def test_a_capped_step_serves_everybody_in_turn(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SwarmSettings(engine_draft=OWN, limits=Limits(max_batch=1))
    _, steps = await serve(monkeypatch, settings)
    roots = [sum(bool(r.num_rows) for r in step.results) for step in steps]
    assert max(roots) == 1
