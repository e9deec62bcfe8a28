"""Leases: resumed, refused, released and ended, with scripted nodes in virtual time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from coordinator.gateway.ports import FinishEvent, Volunteers
from coordinator.scheduler.rests import FIRST_REST_S, LEAST_SHARE
from specedge_p2p.overlay.memory import MemoryOverlay
from specedge_p2p.wire.messages import (
    Capacity,
    Close,
    Goodbye,
    Open,
    Refuse,
    Release,
    Resume,
    Verdict,
)
from tests.support.links import changed, proposal
from tests.support.scripted_node import HELLO, ScriptedNode, dialled, scripted_node, settled
from tests.support.swarm import ENDLESS, Swarm, SwarmSettings, identity, request, running_swarm

PROMPT = "a long story"


@asynccontextmanager
async def drafting(
    settings: SwarmSettings | None = None, volunteers: Volunteers = "any"
) -> AsyncIterator[tuple[Swarm, MemoryOverlay]]:
    """A swarm with one session that does not end by itself, and a node that has yet to dial."""
    async with running_swarm(settings, target=ENDLESS) as swarm, trio.open_nursery() as nursery:
        run = partial(swarm.generate, PROMPT, max_tokens=2000, volunteers=volunteers)
        nursery.start_soon(run)
        await settled(swarm)
        yield swarm, swarm.network.join(identity(1).peer_id)
        nursery.cancel_scope.cancel()


async def test_law2_one_owner_a_node_resumes_where_it_was(autojump_clock: MockClock) -> None:
    async with drafting() as (swarm, overlay):
        async with dialled(swarm, overlay) as node:
            await node.greet()
            opened = await node.hear_session()
            await node.hear_tokens(opened.num_tokens + 3)
            position = node.machine.committed(opened.session_no)
        await settled(swarm)
        async with dialled(swarm, overlay) as node:
            await node.greet()
            await node.say(Resume(opened.lease_id, position))
            resumed = await node.hear(Open)
            assert resumed.resumed
            assert resumed.lease_id == opened.lease_id
            verdict = await node.hear(Verdict)
            assert verdict.from_position == position
            assert len(verdict.token_ids) >= 3  # what was missed
            await node.hear_tokens(position + 20)
            (session,) = swarm.coordinator.sessions
            assert swarm.coordinator.leases.drafting_peers(session) == (identity(1).peer_id,)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"lease_id": b"x" * 16}, "unknown_lease"),
        ({"position": 100_000}, "bad_position"),
        ({"position": 1}, "bad_position"),  # inside the prompt
    ],
)
async def test_a_resume_that_cannot_be(
    autojump_clock: MockClock, change: dict[str, object], code: str
) -> None:
    async with drafting() as (swarm, overlay):
        async with dialled(swarm, overlay) as node:
            await node.greet()
            opened = await node.hear_session()
        await settled(swarm)
        async with dialled(swarm, overlay) as node:
            await node.greet()
            resume = Resume(opened.lease_id, opened.num_tokens)
            await node.say(changed(resume, **change))
            refuse = await node.hear(Refuse)
            assert refuse.code == code
            # The link lives on, and after a moment the session is offered afresh.
            assert not (await node.hear_session()).resumed


async def test_law6_privacy_a_lease_is_of_one_peer(autojump_clock: MockClock) -> None:
    """Whoever learns a lease id cannot get the session's tokens with it."""
    settings = SwarmSettings(allowed=frozenset({identity(1).peer_id}))
    async with (
        drafting(settings, "allowed") as (swarm, overlay),
        dialled(swarm, overlay) as node,
        scripted_node(swarm, 2) as thief,
    ):
        await thief.greet()
        await node.greet()
        opened = await node.hear_session()
        await node.link.aclose()
        await settled(swarm)
        await thief.say(Resume(opened.lease_id, opened.num_tokens))
        assert (await thief.hear(Refuse)).code == "unknown_lease"
        with trio.move_on_after(5):
            await thief.read_for_ever()
        assert not thief.machine.sessions


async def test_a_node_comes_back_to_a_session_that_another_drafts_for(
    autojump_clock: MockClock,
) -> None:
    async with drafting() as (swarm, overlay), scripted_node(swarm, 2) as other:
        async with dialled(swarm, overlay) as node:
            await node.greet()
            opened = await node.hear_session()
            await other.greet()
        await other.hear_session()
        async with dialled(swarm, overlay) as node:
            await node.greet()
            await node.say(Resume(opened.lease_id, opened.num_tokens))
            assert (await node.hear(Open)).role == "standby"


async def test_resuming_what_was_never_lost_is_refused(autojump_clock: MockClock) -> None:
    async with drafting() as (swarm, overlay), dialled(swarm, overlay) as node:
        await node.greet(changed(HELLO, max_sessions=2))
        opened = await node.hear_session()
        for _ in range(3):
            await node.say(Resume(opened.lease_id, opened.num_tokens))
            assert (await node.hear(Refuse)).code == "taken"
        assert node.machine.sessions == (opened.session_no,)


async def test_a_node_without_room_does_not_resume(autojump_clock: MockClock) -> None:
    async with drafting() as (swarm, overlay):
        async with dialled(swarm, overlay) as node:
            await node.greet()
            opened = await node.hear_session()
        await settled(swarm)
        async with dialled(swarm, overlay) as node:
            await node.greet(changed(HELLO, max_sessions=0))
            await node.say(Resume(opened.lease_id, opened.num_tokens))
            assert (await node.hear(Refuse)).code == "full"


async def test_resume_and_goodbye_in_one_frame(autojump_clock: MockClock) -> None:
    async with drafting() as (swarm, overlay):
        async with dialled(swarm, overlay) as node:
            await node.greet()
            opened = await node.hear_session()
        await settled(swarm)
        async with dialled(swarm, overlay) as node:
            await node.greet()
            resume = Resume(opened.lease_id, opened.num_tokens)
            await node.say(resume, Goodbye())
            await settled(swarm)
        assert not swarm.coordinator.leases.nodes


async def test_a_release_that_crosses_verdicts(autojump_clock: MockClock) -> None:
    async with drafting() as (swarm, overlay), dialled(swarm, overlay) as node:
        await node.greet()
        opened = await node.hear_session()
        await node.hear_tokens(opened.num_tokens + 2)
        await node.say(Release(opened.session_no))
        await trio.sleep(5)  # verdicts were on their way; it is not offered again
        with trio.move_on_after(5):
            await node.read_for_ever()
        assert not node.machine.sessions
        (session,) = swarm.coordinator.sessions
        assert session.num_tokens > 100


async def test_law2_one_owner_trees_of_a_dead_engine_are_ended(autojump_clock: MockClock) -> None:
    async with drafting() as (swarm, overlay), dialled(swarm, overlay) as node:
        await node.greet()
        opened = await node.hear_session()
        await node.say(proposal([1, 2], [0, 1], base_position=opened.num_tokens))
        await settled(swarm)
        swarm.engine.crash()
        verdict = await node.hear(Verdict)
        while not verdict.restart_tree_no:
            verdict = await node.hear(Verdict)
        assert verdict.restart_tree_no == 1
        committed = node.machine.committed(opened.session_no)
        await node.say(proposal([3], [0], tree_no=2, base_position=committed))
        await settled(swarm)
        assert swarm.coordinator.intake.num_protocol_errors == 0


async def test_law7_bounded_a_slow_client_keeps_no_node(autojump_clock: MockClock) -> None:
    """The node's room is free again when the session has ended, read or not."""
    async with running_swarm(target=ENDLESS) as swarm, scripted_node(swarm) as node:
        await node.greet(changed(HELLO, max_sessions=1))
        generations = swarm.coordinator.generations
        async with generations.generate(request("one", 5, 0.0, 0)) as events:
            first = await node.hear_session()
            assert (await node.hear(Close)).session_no == first.session_no
            async with generations.generate(request("two", 5, 0.0, 0)):
                second = await node.hear_session()
                assert second.session_no == first.session_no + 1
                await node.hear(Close)
            assert isinstance([event async for event in events][-1], FinishEvent)


async def test_a_node_takes_as_many_as_it_says(autojump_clock: MockClock) -> None:
    async with running_swarm(target=ENDLESS) as swarm, scripted_node(swarm) as node:
        await node.greet(changed(HELLO, max_sessions=0))
        async with trio.open_nursery() as nursery:
            for prompt in ("one", "two", "three"):
                nursery.start_soon(partial(swarm.generate, prompt, max_tokens=500))
            await settled(swarm)
            await _say_and_count(node, Capacity(2), 2)
            await _say_and_count(node, Capacity(3), 3)
            await _say_and_count(node, Capacity(1), 3)  # what runs goes on
            await node.say(*(Release(no) for no in node.machine.sessions))
            await _say_and_count(node, Capacity(8), 0)  # never what was given back
            nursery.cancel_scope.cancel()


async def test_what_a_node_says_of_its_levels_is_known(autojump_clock: MockClock) -> None:
    async with running_swarm() as swarm, scripted_node(swarm) as node:
        await node.greet(changed(HELLO, level_time_s=0.01, level_session_time_s=0.001))
        for said, known in (
            (Capacity(3), (0.01, 0.001)),
            (Capacity(3, 0.02, 0.003), (0.02, 0.003)),
            (Capacity(2), (0.02, 0.003)),
        ):
            await _say_and_count(node, said, 0)
            (link,) = swarm.coordinator.leases.nodes
            assert (link.level_time_s, link.level_session_time_s) == known


async def _say_and_count(node: ScriptedNode, message: Capacity, num_sessions: int) -> None:
    await node.say(message)
    with trio.move_on_after(0.7):
        await node.read_for_ever()
    assert len(node.machine.sessions) == num_sessions


async def test_a_lease_expires(autojump_clock: MockClock) -> None:
    async with drafting() as (swarm, overlay), scripted_node(swarm, 2) as other:
        async with dialled(swarm, overlay) as node:
            await node.greet()
            opened = await node.hear_session()
        await other.greet(changed(HELLO, max_sessions=0))  # its pings make the time pass
        with trio.move_on_after(65):
            await other.read_for_ever()
        async with dialled(swarm, overlay) as node:
            await node.greet(changed(HELLO, max_sessions=0))
            await node.say(Resume(opened.lease_id, opened.num_tokens))
            assert (await node.hear(Refuse)).code == "unknown_lease"


async def test_a_node_whose_guesses_never_come_true_rests_and_is_tried_again(
    autojump_clock: MockClock,
) -> None:
    async with drafting() as (swarm, overlay), dialled(swarm, overlay) as node:
        await node.greet()
        opened = await node.hear_session()
        number, end = opened.session_no, opened.num_tokens
        await node.say(proposal([2], [0], session_no=number, base_position=end))
        closed = await node.hear(Close)
        assert closed.session_no == number
        assert closed.rest_s == pytest.approx(FIRST_REST_S, abs=0.5)
        assert f"fewer than {LEAST_SHARE:.0%} of what was left" in closed.reason
        (view,) = swarm.coordinator.status.network().nodes
        assert view.num_sessions == 0
        assert view.rest_s == pytest.approx(FIRST_REST_S, abs=0.5)
        rested_s = trio.current_time()
        again = await node.hear_session()
        assert trio.current_time() - rested_s == pytest.approx(FIRST_REST_S, abs=1.0)
        assert again.num_tokens > opened.num_tokens
        closed = await node.hear(Close)
        assert closed.rest_s == pytest.approx(2 * FIRST_REST_S, abs=0.5)
