"""The door from the gateway to the sessions."""

from collections import Counter
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from coordinator.engine.settings import EngineLimits
from coordinator.gateway.ports import GenerationRequest, Refused
from coordinator.settings import Limits
from specedge_p2p.lm.chat_template import TemplateRefused
from specedge_p2p.lm.toy_text import ToyText
from tests.support.scripted_node import settled
from tests.support.swarm import ENDLESS, VOCAB, Swarm, SwarmSettings, request, running_swarm

BASE = request("a prompt", 5, 0.8, 0)


async def refused(swarm: Swarm, asked: GenerationRequest) -> Refused:
    with pytest.raises(Refused) as error:
        async with swarm.coordinator.generations.generate(asked):
            raise AssertionError("it was taken")
    return error.value


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "another"}, 404, "model_not_found"),
        ({"prompt_ids": ()}, 400, "empty_prompt"),
        ({"prompt_ids": (5,) * 100_000}, 400, "context_length_exceeded"),
    ],
)
async def test_requests_that_cannot_be_served(
    autojump_clock: MockClock, change: dict[str, object], status: int, code: str
) -> None:
    async with running_swarm() as swarm:
        error = await refused(swarm, replace(BASE, **change))  # type: ignore[arg-type]
        assert (error.status, error.code) == (status, code)
        assert not len(swarm.coordinator.sessions)


async def test_before_the_engine_is_ready_nothing_is_taken(autojump_clock: MockClock) -> None:
    swarm = Swarm(SwarmSettings(), ENDLESS)
    generations = swarm.coordinator.generations
    assert generations.models() == ()
    assert generations.is_ready() == (False, "the engine is loading its model")
    error = await refused(swarm, BASE)
    assert (error.status, error.code) == (503, "not_ready")
    assert error.retry_after_s


async def test_ready_and_what_is_served(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm:
        generations = swarm.coordinator.generations
        assert generations.is_ready() == (True, "")
        (card,) = generations.models()
        assert (card.id, card.vocab_size) == ("toy-target", VOCAB)
        generations.stop("stopping")
        assert generations.is_ready() == (False, "stopping")
        assert (await refused(swarm, BASE)).text == "stopping"


@pytest.mark.parametrize("max_tokens", [1, 2, 17])
async def test_max_tokens(autojump_clock: MockClock, max_tokens: int) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        got = await swarm.generate("a prompt", max_tokens=max_tokens)
        assert (len(got.token_ids), got.reason) == (max_tokens, "length")


async def test_without_max_tokens_the_context_is_the_end(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        (card,) = swarm.coordinator.generations.models()
        asked = replace(
            BASE, prompt_ids=tuple(2 + i % 20 for i in range(card.max_context - 6)), max_tokens=None
        )
        async with swarm.coordinator.generations.generate(asked) as events:
            *_, last = [event async for event in events]
        assert last.stats.num_tokens == 6  # type: ignore[union-attr]
        assert last.reason == "length"  # type: ignore[union-attr]


async def test_seeds(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        got = [await swarm.generate("a prompt", max_tokens=30, seed=n) for n in (1, 1, 2)]
        assert got[0].token_ids == got[1].token_ids != got[2].token_ids
        free = Counter[tuple[int, ...]]()
        for _ in range(3):
            free[await unseeded(swarm)] += 1
        assert len(free) == 3


async def unseeded(swarm: Swarm) -> tuple[int, ...]:
    """No seed: fresh randomness, though the prompt is the same."""
    asked = replace(request("a prompt", 30, 0.8, 0), seed=None)
    async with swarm.coordinator.generations.generate(asked) as events:
        found = [event async for event in events]
    return tuple(token.token_id for e in found for token in getattr(e, "tokens", ()))


async def test_the_noise_key_depends_on_seed_and_prompt(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm:
        make = swarm.coordinator.generations._new_session
        same = replace(BASE, seed=3)
        other = replace(same, prompt_ids=(*BASE.prompt_ids, 4))
        random = replace(BASE, seed=None)
        keys = [make(asked).noise_key for asked in (same, same, other, random, random)]
        assert keys[0] == keys[1]
        assert len(set(keys)) == 4


async def test_a_client_that_leaves_before_the_first_token(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        with trio.move_on_after(0.02):  # in the middle of the prefill's step
            await swarm.generate("never mind", max_tokens=1000)
        assert not len(swarm.coordinator.sessions)
        with trio.move_on_after(0.0):  # before anything was planned
            await swarm.generate("never mind", max_tokens=1000)
        await settled(swarm)
        num_steps = swarm.coordinator.load.num_steps
        await trio.sleep(10)
        assert swarm.coordinator.load.num_steps == num_steps
        assert (await swarm.generate("again")).token_ids == swarm.expected("again")


async def test_what_the_engine_cannot_serve_is_a_503(autojump_clock: MockClock) -> None:
    """The engine's own limit is lower than ours: the third session fails, the others go on."""
    limits = EngineLimits(max_sessions=2)
    async with running_swarm(SwarmSettings(engine_limits=limits), target=ENDLESS) as swarm:
        failed: list[Refused] = []
        done: list[str] = []

        async def run(prompt: str) -> None:
            try:
                got = await swarm.generate(prompt, max_tokens=30)
            except Refused as error:
                failed.append(error)
            else:
                assert got.token_ids == swarm.expected(prompt, max_tokens=30)
                done.append(prompt)

        async with trio.open_nursery() as nursery:
            for prompt in ("one", "two", "three"):
                nursery.start_soon(run, prompt)
        assert len(done) == 2
        (error,) = failed
        assert (error.status, error.code) == (503, "too_many_sessions")
        assert not len(swarm.coordinator.sessions)
        assert (await swarm.generate("four")).token_ids == swarm.expected("four")


async def test_sessions_that_come_while_the_engine_is_down_wait(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        swarm.engine.crash()
        await trio.sleep(0.1)
        got = await swarm.generate("patience", max_tokens=10)
        assert got.token_ids == swarm.expected("patience", max_tokens=10)
        assert swarm.engine.num_restarts == 1


async def test_a_session_given_up_while_the_engine_is_down(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        with trio.move_on_after(0.3) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(swarm.generate, "given up")
                await trio.sleep(0.1)
                swarm.engine.crash()
        assert scope.cancelled_caught
        got = await swarm.generate("the next", max_tokens=10)
        assert got.token_ids == swarm.expected("the next", max_tokens=10)


async def test_law7_bounded_the_place_of_an_unread_answer_is_kept(
    autojump_clock: MockClock,
) -> None:
    async with running_swarm(SwarmSettings(limits=Limits(max_sessions=1))) as swarm:
        async with swarm.coordinator.generations.generate(BASE):
            await trio.sleep(10)
            assert (await refused(swarm, BASE)).code == "overloaded"
        assert (await swarm.generate("next")).token_ids == swarm.expected("next")


async def test_a_prompt_longer_than_any_context_is_not_tokenized(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm:
        generations = swarm.coordinator.generations
        (card,) = generations.models()
        text = "a" * card.max_context
        assert len(generations.encode(text)) == card.max_context + 1  # it begins with a mark
        for encode, prompt, param in (
            (generations.encode, text + "a", "prompt"),
            (generations.encode_chat, [{"role": "user", "content": text}], "messages"),
        ):
            with pytest.raises(Refused) as error:
                encode(prompt)  # type: ignore[arg-type]
            assert (error.value.status, error.value.param) == (400, param)
            assert error.value.code == "context_length_exceeded"


async def test_messages_that_the_template_refuses(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[int]:
        raise TemplateRefused("this model has no chat template")

    monkeypatch.setattr(ToyText, "encode_chat", refuse)
    async with running_swarm() as swarm:
        with pytest.raises(Refused, match="no chat template") as error:
            swarm.coordinator.generations.encode_chat([{"role": "user", "content": "a"}])
        assert (error.value.status, error.value.code) == (400, "invalid_messages")
