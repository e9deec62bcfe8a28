"""Lock-step rounds in virtual time: the same text, one proposal per verdict, and nobody stuck."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from coordinator.settings import Limits, Lockstep
from specedge_p2p.lm.toy import ToyModel
from specedge_p2p.wire.messages import Proposal, Verdict
from tests.support.scripted_node import scripted_node
from tests.support.swarm import ENDLESS, Swarm, SwarmSettings, identity, running_swarm
from tests.swarm.test_swarm import Weather, draft, endless, generate_all, weathers


def settings(lockstep: Lockstep, **more: float) -> SwarmSettings:
    return replace(SwarmSettings(limits=Limits(lockstep=lockstep)), **more)  # type: ignore[arg-type]


async def lengths(lockstep: Lockstep | None, drafts: Sequence[ToyModel]) -> tuple[Swarm, float]:
    """Tokens per step of four long generations."""
    swarm_settings = SwarmSettings() if lockstep is None else settings(lockstep)
    prompts = ["one", "two", "three", "four"]
    async with running_swarm(swarm_settings, drafts, ENDLESS) as swarm:
        results = await generate_all(swarm, prompts, max_tokens=80)
        for i, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
            assert result.token_ids == swarm.expected(prompt, max_tokens=80, seed=i)
        rounds = sum(result.stats.num_rounds for result in results if result.stats)
    return swarm, 4 * 79 / rounds


@pytest.mark.parametrize("is_proactive", [True, False])
async def test_every_round_brings_a_tree(
    autojump_clock: trio.testing.MockClock, is_proactive: bool
) -> None:
    lockstep = Lockstep(levels=4, vertices=16, is_proactive=is_proactive)
    _, alone = await lengths(None, [])
    _, rounds = await lengths(lockstep, [endless(0.5), endless(0.5)])
    assert alone <= 1.5
    assert rounds > 2.0


async def test_proactive_growth_saves_levels(autojump_clock: trio.testing.MockClock) -> None:
    waits = []
    for is_proactive in (True, False):
        lockstep = Lockstep(levels=4, vertices=16, is_proactive=is_proactive)
        async with running_swarm(settings(lockstep), [endless(0.3)], ENDLESS) as swarm:
            waits.append((await swarm.generate("a story", max_tokens=100)).finished_s)
    assert waits[0] < 0.97 * waits[1]


async def test_a_step_waits_for_a_batch_but_never_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    steps = []
    for min_batch in (1, 4):
        lockstep = Lockstep(levels=3, vertices=16, min_batch=min_batch)
        swarm, _ = await lengths(lockstep, [endless(0.5), endless(0.8)])
        steps.append(swarm.coordinator.load.num_steps)
    assert steps[1] < steps[0]


async def test_a_node_sends_one_tree_for_every_verdict(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Counted at the coordinator's end of the link."""
    lockstep = Lockstep(levels=3, vertices=8)
    async with running_swarm(settings(lockstep), [endless(0.5)], ENDLESS) as swarm:
        counts = {"trees": 0, "verdicts": 0}
        leases = swarm.coordinator.leases
        (node,) = leases.nodes
        machine, receive, send = node.machine, node.machine.receive, node.machine.send

        def counting_receive(frame: bytes) -> object:
            messages = receive(frame)
            for message in messages:
                if isinstance(message, Proposal):
                    counts["trees"] += 1
                    assert message.first_index == 1
                    assert len(message.log_probs) <= 8
                    assert message.base_position == machine.committed(message.session_no)
            return messages

        def counting_send(*messages: object) -> bytes:
            counts["verdicts"] += sum(isinstance(message, Verdict) for message in messages)
            return send(*messages)  # type: ignore[arg-type]

        machine.receive = counting_receive  # type: ignore[method-assign,assignment]
        machine.send = counting_send  # type: ignore[method-assign]
        result = await swarm.generate("once", max_tokens=60)
        assert result.stats is not None
        assert counts["verdicts"] - 2 <= counts["trees"] <= counts["verdicts"] + 1
        assert counts["verdicts"] >= result.stats.num_rounds


async def test_law3_critical_path_a_silent_node_costs_one_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lockstep = Lockstep(levels=3, vertices=8, wait_s=0.5)
    times = []
    for is_silent in (False, True):
        async with running_swarm(settings(lockstep), target=ENDLESS) as swarm:
            if is_silent:
                async with scripted_node(swarm) as node, trio.open_nursery() as nursery:
                    await node.greet()
                    nursery.start_soon(node.read_for_ever)
                    times.append((await swarm.generate("hm", max_tokens=40)).finished_s)
                    nursery.cancel_scope.cancel()
            else:
                times.append((await swarm.generate("hm", max_tokens=40)).finished_s)
    assert times[0] + 0.4 < times[1] < times[0] + 0.6


async def test_law2_one_owner_lockstep_goes_on_after_a_lost_link_and_a_lost_engine(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lockstep = Lockstep(levels=3, vertices=16)
    async with running_swarm(settings(lockstep), [endless(0.3)], ENDLESS) as swarm:

        async def trouble() -> None:
            for _ in range(3):
                await trio.sleep(0.5)
                swarm.network.drop_links(identity(1).peer_id, swarm.identity.peer_id)
                await trio.sleep(0.5)
                swarm.engine.crash()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trouble)
            result = await swarm.generate("a long story", max_tokens=300)
        assert result.token_ids == swarm.expected("a long story", max_tokens=300)
        assert result.stats is not None
        assert swarm.workers[1].stats.num_resumed
        assert result.stats.num_tokens / result.stats.num_rounds > 1.8


@given(
    skills=st.lists(st.sampled_from([0.0, 0.5, 2.5]), min_size=1, max_size=4),
    levels=st.integers(1, 6),
    vertices=st.integers(1, 32),
    is_proactive=st.booleans(),
    min_batch=st.integers(1, 4),
    latency_s=st.floats(0.0, 0.1),
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.8]),
    weather=weathers,
)
def test_law1_output_is_the_same_in_lockstep(
    skills: list[float],
    levels: int,
    vertices: int,
    is_proactive: bool,
    min_batch: int,
    latency_s: float,
    seed: int,
    temperature: float,
    weather: Weather,
) -> None:
    lockstep = Lockstep(levels, vertices, is_proactive, min_batch, wait_s=0.3)
    drafts = [draft(skill, number) for number, skill in enumerate(skills)]
    prompts = [f"prompt {seed % 97} {i}" for i in range(1 + seed % 3)]

    async def run() -> None:
        swarm_settings = settings(lockstep, latency_s=latency_s, seed=seed)
        async with running_swarm(swarm_settings, drafts) as swarm:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(weather.blow, swarm)
                results = await generate_all(swarm, prompts, max_tokens=16, temperature=temperature)
                nursery.cancel_scope.cancel()
            for i, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
                want = swarm.expected(prompt, max_tokens=16, temperature=temperature, seed=i)
                assert result.token_ids == want

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
