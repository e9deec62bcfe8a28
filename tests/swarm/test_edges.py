"""Sessions at the edges: shortest and longest, odd draft models, nodes with no or little room."""

from dataclasses import replace

import pytest
import trio
import trio.testing

from coordinator.gateway.ports import FinishEvent, GenerationRequest, TextEvent
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from specedge_p2p.noise import noise_key, seed_bytes
from tests.support.swarm import MODEL, Swarm, SwarmSettings, running_swarm

TARGET = ToyParams(32, eos_bias=-100.0)
OFTEN_ENDING = ToyParams(32, eos_bias=2.0)
CONTEXT = 24


def draft(target: ToyParams, max_context: int = 4096, vocab_size: int = 32) -> ToyModel:
    params = replace(target, perturbation=0.3, vocab_size=vocab_size)
    return ToyModel(params, name="toy-draft", max_context=max_context)


async def session(swarm: Swarm, prompt: tuple[int, ...], max_tokens: int | None) -> list[int]:
    """Its tokens, after the finish reason was checked."""
    sampling = SamplingParams(0.8)
    wanted = GenerationRequest(MODEL, prompt, sampling, 3, max_tokens)
    tokens: list[int] = []
    reason = ""
    with trio.fail_after(60):
        async with swarm.coordinator.generations.generate(wanted) as events:
            async for event in events:
                match event:
                    case TextEvent(_, guessed):
                        tokens += [token.token_id for token in guessed]
                    case FinishEvent(reason, _):
                        pass
    room = CONTEXT - len(prompt)
    most = room if max_tokens is None else min(room, max_tokens)
    key = noise_key(seed_bytes(3), prompt)
    expected = toy_decode(swarm.target, prompt, sampling, key, most)
    assert tokens == expected
    assert reason == ("stop" if 1 in expected else "length")
    return tokens


@pytest.mark.parametrize("target", [TARGET, OFTEN_ENDING])
@pytest.mark.parametrize(
    ("draft_context", "draft_vocab"), [(4096, 32), (CONTEXT, 32), (12, 32), (1, 32), (4096, 40)]
)
async def test_law1_output_at_the_edges_of_the_context(
    autojump_clock: trio.testing.MockClock,
    target: ToyParams,
    draft_context: int,
    draft_vocab: int,
) -> None:
    settings = SwarmSettings(max_context=CONTEXT, step_time_s=0.05)
    drafts = [draft(target, draft_context, draft_vocab)]
    async with running_swarm(settings, drafts, target) as swarm:
        for num_prompt in (1, 2, CONTEXT - 2, CONTEXT - 1):
            for max_tokens in (1, 2, CONTEXT, None):
                prompt = tuple(2 + i % 30 for i in range(num_prompt))
                await session(swarm, prompt, max_tokens)
        assert swarm.coordinator.intake.num_protocol_errors == 0
        assert swarm.workers[1].num_welcomes == 1, "the link was lost"
        await trio.sleep(1)
        assert swarm.workers[1].stats.num_sessions == 0


async def test_a_node_whose_vocabulary_is_too_small_gives_the_session_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm(
        SwarmSettings(max_context=CONTEXT), [draft(TARGET, vocab_size=20)], TARGET
    ) as swarm:
        await session(swarm, (31, 30, 29), 12)
        await session(swarm, (3, 4, 5), 12)
        assert swarm.workers[1].num_welcomes == 1, "the link was lost"


@pytest.mark.parametrize("node_sessions", [0, 1])
async def test_nodes_with_little_room_get_no_more_than_they_take(
    autojump_clock: trio.testing.MockClock, node_sessions: int
) -> None:
    settings = SwarmSettings(max_context=CONTEXT, node_sessions=node_sessions)
    async with running_swarm(settings, [draft(TARGET)], TARGET) as swarm:
        most = 0
        async with trio.open_nursery() as nursery:
            for first in range(2, 8):
                nursery.start_soon(session, swarm, (first, 5), 12)
            for _ in range(60):
                most = max(most, swarm.workers[1].stats.num_sessions)
                await trio.sleep(0.01)
        assert most == node_sessions
        assert swarm.workers[1].num_welcomes == 1, "the link was lost"


async def test_a_session_resumed_right_before_its_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Links are lost at every moment of a short session, its last step included."""
    for lost_after_ms in range(0, 700, 20):
        settings = SwarmSettings(max_context=CONTEXT)
        async with running_swarm(settings, [draft(TARGET)], TARGET) as swarm:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session, swarm, (4, 5, 6), None)
                await trio.sleep(lost_after_ms / 1000)
                peer = next(iter(swarm.coordinator.leases.nodes)).peer_id
                swarm.network.drop_links(peer, swarm.identity.peer_id)
            await session(swarm, (9, 8), 4)
            assert swarm.coordinator.intake.num_protocol_errors == 0
