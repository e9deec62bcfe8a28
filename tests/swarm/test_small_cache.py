"""The whole swarm on a target whose cache holds a quarter of what its sessions want."""

from dataclasses import replace
from random import Random

import pytest
import trio
from trio.testing import MockClock

from coordinator.settings import Limits
from specedge_p2p.lm.toy import ToyModel
from tests.support.swarm import ENDLESS, SwarmSettings, running_swarm

PAGE_ROWS = 16
NUM_SESSIONS = 12
COMMON = "You are a helpful assistant. Answer in the fewest words that will do. "


@pytest.mark.parametrize("max_batch", [0, 3])
async def test_law1_output_when_sessions_have_to_make_room(
    autojump_clock: MockClock, max_batch: int
) -> None:
    random = Random(max_batch)
    jobs = {
        seed: (COMMON[: random.choice([0, 70])] + f"Question {seed}", random.choice([100, 180]))
        for seed in range(NUM_SESSIONS)
    }
    num_wanted = sum(len(prompt) + length for prompt, length in jobs.values())
    settings = SwarmSettings(
        limits=Limits(max_batch=max_batch),
        cache_rows=num_wanted // 4,
        page_rows=PAGE_ROWS,
    )
    drafts = [ToyModel(replace(ENDLESS, perturbation=0.5), name="toy-draft") for _ in range(2)]
    async with running_swarm(settings, drafts, ENDLESS) as swarm:

        async def one(seed: int) -> None:
            prompt, length = jobs[seed]
            got = await swarm.generate(prompt, max_tokens=length, seed=seed)
            assert got.token_ids == swarm.expected(prompt, max_tokens=length, seed=seed)

        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                for seed in jobs:
                    nursery.start_soon(one, seed)
        load = swarm.coordinator.load
        assert load.num_accepted > 0
        assert load.num_preempted > 0
        assert load.num_reused_rows > 0
