"""The whole network in virtual time: the laws, on a toy model, exactly."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.ports import Refused
from specedge_p2p.lm.toy import ToyModel, ToyParams
from specedge_p2p.names import PeerId
from tests.support.swarm import Generated, Swarm, SwarmSettings, identity, running_swarm

VOCAB = 32
USELESS = 2.5
"""A perturbation after which a draft model agrees on 29 % of the greedy tokens."""


def draft(perturbation: float = 0.5, seed: int = 1) -> ToyModel:
    params = ToyParams(VOCAB, perturbation=perturbation, perturbation_seed=seed)
    return ToyModel(params, name="toy-draft")


ENDLESS = ToyParams(VOCAB, eos_bias=-100.0)


def endless(perturbation: float) -> ToyModel:
    """A draft model for the target that never ends by itself."""
    return ToyModel(replace(ENDLESS, perturbation=perturbation), name="toy-draft")


async def generate_all(swarm: Swarm, prompts: list[str], **options: object) -> list[Generated]:
    results: list[Generated | None] = [None] * len(prompts)

    async def run(i: int, prompt: str) -> None:
        results[i] = await swarm.generate(prompt, seed=i, **options)  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        for i, prompt in enumerate(prompts):
            nursery.start_soon(run, i, prompt)
    return [result for result in results if result is not None]


async def test_nodes_draft_and_are_credited(autojump_clock: trio.testing.MockClock) -> None:
    prompts = ["the quick", "brown fox", "jumps over", "the lazy dog"]
    async with running_swarm(drafts=[draft(), draft()]) as swarm:
        results = await generate_all(swarm, prompts, max_tokens=60)
        for i, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
            assert result.token_ids == swarm.expected(prompt, max_tokens=60, seed=i)
        await trio.sleep(2)
        accepted: dict[PeerId, int] = {}
        for result in results:
            assert result.stats is not None
            assert result.stats.num_tokens == len(result.token_ids)
            for peer_id, num in result.stats.num_accepted_by_node.items():
                accepted[peer_id] = accepted.get(peer_id, 0) + num
                assert result.guessed_by.count(peer_id) == num
        summary = await swarm.ledger.summary()
        assert summary.accepted_by_node == accepted
        assert summary.sum_micro_credits == 0
        assert set(accepted) == {identity(1).peer_id, identity(2).peer_id}
        num_tokens = sum(len(result.token_ids) for result in results)
        assert sum(accepted.values()) > 0.3 * num_tokens
        held = [book.last_sequence(swarm.identity.peer_id) for book in swarm.books.values()]
        sent = [len(await swarm.ledger.receipts_after(identity(n).peer_id, 0)) for n in swarm.books]
        assert held == sent
        assert all(held)


async def test_law3_critical_path_no_step_waits_for_a_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """First token and number of steps are no worse than without nodes, useless ones included."""
    prompts = ["alpha beta", "gamma delta", "epsilon zeta"]
    timings = []
    for drafts in ([], [draft(USELESS), draft(USELESS, 2)]):
        async with running_swarm(drafts=drafts) as swarm:
            results = await generate_all(swarm, prompts, max_tokens=40)
            timings.append((results, swarm.coordinator.load.num_steps))
    (alone, steps_alone), (helped, steps_helped) = timings
    assert [r.token_ids for r in alone] == [r.token_ids for r in helped]
    assert steps_helped <= steps_alone
    for without, with_nodes in zip(alone, helped, strict=True):
        # Rows cost a little time in this swarm; a wait for a node would cost a round trip, 15 ms.
        assert with_nodes.first_token_s <= without.first_token_s + 0.002


async def test_law3_critical_path_frozen_nodes_delay_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm(drafts=[draft()]) as swarm:
        alone = await swarm.generate("a prompt", max_tokens=30, volunteers="none")
        swarm.network.stall(identity(1).peer_id, swarm.identity.peer_id)
        stalled = await swarm.generate("a prompt", max_tokens=30)
        assert stalled.token_ids == alone.token_ids
        assert stalled.finished_s <= alone.finished_s + 0.01


async def test_law2_one_owner_engine_crash_loses_no_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm(drafts=[endless(0.5)], target=ENDLESS) as swarm:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash_after, swarm, 0.3)
            nursery.start_soon(crash_after, swarm, 1.5)
            result = await swarm.generate("once upon a time", max_tokens=120)
        assert result.token_ids == swarm.expected("once upon a time", max_tokens=120)
        assert swarm.engine.num_restarts == 2
        assert result.stats is not None
        assert result.stats.num_accepted_by_node


async def crash_after(swarm: Swarm, delay_s: float) -> None:
    await trio.sleep(delay_s)
    swarm.engine.crash()


async def test_law2_one_owner_node_resumes_its_sessions(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm(drafts=[endless(0.5)], target=ENDLESS) as swarm:

        async def drop() -> None:
            for _ in range(4):
                await trio.sleep(0.4)
                swarm.network.drop_links(identity(1).peer_id, swarm.identity.peer_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop)
            result = await swarm.generate("a long story", max_tokens=150)
            nursery.cancel_scope.cancel()
        assert len(result.token_ids) == 150
        assert result.token_ids == swarm.expected("a long story", max_tokens=150)
        assert swarm.workers[1].stats.num_resumed >= 1


@pytest.mark.parametrize(
    ("volunteers", "drafted_by"), [("none", set()), ("allowed", {2}), ("any", {1, 2, 3})]
)
async def test_law6_privacy_prompts_go_only_where_allowed(
    autojump_clock: trio.testing.MockClock, volunteers: str, drafted_by: set[int]
) -> None:
    settings = SwarmSettings(allowed=frozenset({identity(2).peer_id}))
    async with running_swarm(settings, [draft(), draft(), draft()]) as swarm:
        prompts = ["one", "two", "three", "four", "five", "six"]
        await generate_all(swarm, prompts, max_tokens=24, volunteers=volunteers)
        served = {n for n, worker in swarm.workers.items() if worker.stats.num_committed}
        assert served == drafted_by


async def test_law7_bounded_sessions_are_refused_clearly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    from coordinator.settings import Limits

    async with running_swarm(SwarmSettings(limits=Limits(max_sessions=2))) as swarm:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(swarm.generate, "one", max_tokens=50))
            nursery.start_soon(partial(swarm.generate, "two", max_tokens=50))
            await trio.sleep(0.2)
            with pytest.raises(Refused) as refused:
                await swarm.generate("three")
            assert refused.value.status == 503
        assert (await swarm.generate("three")).token_ids == swarm.expected("three")


async def test_a_stop_string_ends_the_session_and_frees_everything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm(drafts=[draft()]) as swarm:
        whole = await swarm.generate("stop me", max_tokens=60)
        stop = whole.text[10:13]
        cut = await swarm.generate("stop me", max_tokens=60, stop=(stop,))
        assert cut.reason == "stop"
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
        await trio.sleep(0.5)
        assert not len(swarm.coordinator.sessions)
        assert swarm.workers[1].stats.num_sessions == 0


async def test_cancelling_a_request_frees_engine_and_nodes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm(drafts=[endless(0.5)], target=ENDLESS) as swarm:
        with trio.move_on_after(0.5):
            await swarm.generate("never mind", max_tokens=1000)
        await trio.sleep(0.5)
        assert not len(swarm.coordinator.sessions)
        assert swarm.workers[1].stats.num_sessions == 0


# --- the output law as a property ----------------------------------------------------------------


class Weather:
    """What goes wrong, drawn by Hypothesis."""

    def __init__(self, events: list[tuple[float, str, int]]) -> None:
        self.events = events

    async def blow(self, swarm: Swarm) -> None:
        for delay_s, kind, number in self.events:
            await trio.sleep(delay_s)
            peer = identity(1 + number % max(1, len(swarm.workers))).peer_id
            actions: dict[str, Callable[[], None]] = {
                "drop": partial(swarm.network.drop_links, peer, swarm.identity.peer_id),
                "cut": partial(swarm.network.cut, peer, swarm.identity.peer_id),
                "heal": swarm.network.heal_all,
                "stall": partial(swarm.network.stall, peer, swarm.identity.peer_id),
                "resume": partial(swarm.network.resume, peer, swarm.identity.peer_id),
                "kill": partial(swarm.network.kill, peer),
                "crash": swarm.engine.crash,
            }
            actions[kind]()


KINDS = ("drop", "cut", "heal", "stall", "resume", "kill", "crash")
weathers = st.lists(
    st.tuples(st.floats(0.0, 0.4), st.sampled_from(KINDS), st.integers(0, 7)), max_size=8
).map(Weather)


@given(
    skills=st.lists(st.sampled_from([0.0, 0.5, 1.2, USELESS]), min_size=1, max_size=8),
    latency_s=st.floats(0.0, 0.1),
    jitter_s=st.floats(0.0, 0.05),
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.8]),
    max_tokens=st.integers(1, 16),
    weather=weathers,
)
def test_law1_output_is_the_same_whatever_the_nodes_do(
    skills: list[float],
    latency_s: float,
    jitter_s: float,
    seed: int,
    temperature: float,
    max_tokens: int,
    weather: Weather,
) -> None:
    settings = SwarmSettings(latency_s=latency_s, jitter_s=jitter_s, seed=seed)
    drafts = [draft(skill, number) for number, skill in enumerate(skills)]
    prompts = [f"prompt {seed % 97} {i}" for i in range(1 + seed % 3)]

    async def run() -> None:
        async with running_swarm(settings, drafts) as swarm:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(weather.blow, swarm)
                results = await generate_all(
                    swarm, prompts, max_tokens=max_tokens, temperature=temperature
                )
                nursery.cancel_scope.cancel()
            for i, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
                want = swarm.expected(
                    prompt, max_tokens=max_tokens, temperature=temperature, seed=i
                )
                assert result.token_ids == want
            await trio.sleep(2.0)
            assert (await swarm.ledger.summary()).sum_micro_credits == 0

    # Each example gets a clock of its own; the fixture's would be shared by all of them.
    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
