"""The coordinator's sample: the target's own tokens, made once, of nobody's prompts."""

from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from coordinator.samples import (
    IDLE_S,
    MAX_PROMPT_TOKENS,
    NUM_TOKENS,
    TEMPERATURES,
    TEXTS,
    SampleMaker,
)
from coordinator.settings import Limits
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.toy import toy_decode
from specedge_p2p.lm.toy_text import ToyText
from specedge_p2p.overlay.memory import address_of
from specedge_p2p.overlay.sample import ASK_S, DraftSample, SampleError, fetch_sample
from specedge_p2p.wire.messages import MAX_FRAME_BYTES
from tests.support.swarm import ENDLESS, VOCAB, Swarm, SwarmSettings, identity, running_swarm


async def fetch(swarm: Swarm, number: int = 9) -> DraftSample:
    overlay = swarm.network.join(identity(number).peer_id)
    return await fetch_sample(overlay, address_of(swarm.identity.peer_id))


async def current(maker: SampleMaker) -> DraftSample | None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(maker.run)
        sample = await maker.current()
        nursery.cancel_scope.cancel()
    return sample


async def test_law1_output_the_sample_is_what_the_target_says(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        sample = await fetch(swarm)
        assert sample.target_model == "toy-target"
        assert sample.vocab_size == VOCAB
        assert sample.tokenizer_fingerprint == ToyText(VOCAB).fingerprint()
        assert 0.01 < sample.step_time_s < 0.2
        assert len(sample.cases) == len(TEXTS) * len(TEMPERATURES)
        for case in sample.cases:
            params = SamplingParams(case.temperature)
            said = toy_decode(swarm.target, case.prompt, params, case.noise_key, NUM_TOKENS)
            assert case.tokens == said
            assert len(case.prompt) <= MAX_PROMPT_TOKENS
        assert {case.temperature for case in sample.cases} == set(TEMPERATURES)


async def test_it_is_made_once_for_all_who_ask(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm:
        samples: list[DraftSample] = []

        async def ask(number: int) -> None:
            samples.append(await fetch(swarm, number))

        async with trio.open_nursery() as nursery:
            for number in range(20, 23):
                nursery.start_soon(ask, number)
        await trio.sleep(1)  # the steps that were queued are over
        num_steps = swarm.coordinator.load.num_steps
        samples.append(await fetch(swarm))
        assert swarm.coordinator.load.num_steps == num_steps
        assert all(sample.cases == samples[0].cases for sample in samples)
        assert not len(swarm.coordinator.sessions)


async def test_law6_privacy_no_node_drafts_for_it(autojump_clock: MockClock) -> None:
    from tests.swarm.test_swarm import endless

    async with running_swarm(drafts=[endless(0.5)], target=ENDLESS) as swarm:
        await fetch(swarm)
        assert swarm.workers[1].stats.num_committed == 0


async def test_users_come_first_but_do_not_keep_it_back_for_ever(
    autojump_clock: MockClock,
) -> None:
    async with running_swarm(target=ENDLESS) as swarm, trio.open_nursery() as nursery:
        nursery.start_soon(partial(swarm.generate, "a long story", max_tokens=2000))
        await trio.sleep(0.1)
        started_s = trio.current_time()
        await fetch(swarm)
        assert trio.current_time() - started_s > IDLE_S
        nursery.cancel_scope.cancel()


async def test_a_full_coordinator_gives_none_and_keeps_what_is_done(
    autojump_clock: MockClock,
) -> None:
    settings = SwarmSettings(limits=Limits(max_sessions=3))
    async with running_swarm(settings, target=ENDLESS) as swarm:
        for number in (20, 21):
            with pytest.raises(SampleError):
                await fetch(swarm, number)
        assert len((await fetch(swarm)).cases) == len(TEXTS) * len(TEMPERATURES)


async def test_what_a_slow_engine_has_begun_for_one_who_gave_up_the_next_one_gets(
    autojump_clock: MockClock,
) -> None:
    """All cases are decoded side by side: before the last token of all there is none."""
    settings = SwarmSettings(step_time_s=5.0)
    async with running_swarm(settings, target=ENDLESS) as swarm:
        started_s = trio.current_time()
        with pytest.raises(SampleError):
            await fetch(swarm, 20)
        assert trio.current_time() - started_s <= ASK_S
        await trio.sleep(5 * NUM_TOKENS)
        sample = await fetch(swarm, 21)
        assert len(sample.cases) == len(TEXTS) * len(TEMPERATURES)


async def test_it_is_kept_between_runs_for_the_same_target(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "sample.msgpack"
    async with running_swarm(target=ENDLESS) as swarm:
        coordinator = swarm.coordinator
        target = coordinator.samples._target

        async def made() -> DraftSample | None:
            return await current(
                SampleMaker(coordinator.generations, coordinator.sessions, target, path)
            )

        first = await made()
        assert first is not None
        await trio.sleep(1)  # the steps that were queued are over
        num_steps = coordinator.load.num_steps
        again = await made()
        assert again is not None
        assert again.cases == first.cases
        assert coordinator.load.num_steps == num_steps
        path.write_bytes(b"nonsense")
        assert (await made()) is not None
        assert coordinator.load.num_steps > num_steps
        assert path.stat().st_size < MAX_FRAME_BYTES


async def test_a_sample_that_cannot_be_kept_is_given_all_the_same(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    async with running_swarm(target=ENDLESS) as swarm:
        parts = swarm.coordinator
        maker = SampleMaker(
            parts.generations,
            parts.sessions,
            parts.samples._target,
            tmp_path / "file" / "sample.msgpack",
        )
        assert (await current(maker)) is not None
