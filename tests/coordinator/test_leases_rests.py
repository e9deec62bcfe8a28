"""What is held against a node, and what is not, before it is told to rest."""

from collections.abc import Sequence

import pytest

from coordinator.engine.messages import EntryResult, SourceSeen, StepDone, TokenSource
from coordinator.lease import Lease
from coordinator.sessions import Session
from specedge_p2p.wire import messages as m
from tests.support.lease_world import World, ask, propose

NOBODY = TokenSource()
STEP_S = 0.04


def serve(
    world: World,
    session: Session,
    tokens: Sequence[TokenSource],
    time_s: float = 12.0,
    *,
    is_first: bool = False,
    is_seen: bool = True,
) -> None:
    """Steps that commit these tokens, for so long."""
    for step_no in range(round(time_s / STEP_S)):
        world.now_s += STEP_S
        seen = [SourceSeen(source, 0.9, is_hit=False) for source in session.nodes_by_source]
        result = EntryResult(
            session=session.number,
            from_position=session.prompt_length + (0 if is_first else 1),
            token_ids=[4] * len(tokens),
            sources=list(tokens),
            num_rows=1,
            num_source_rows=1,
            seen=seen if is_seen else [],
        )
        world.leases.learn(StepDone(step_no, 0.0, STEP_S, 0.0, 1, [result]))


async def drafted(*names: str) -> tuple[World, Session, list[Lease]]:
    """A session, and one node with a lease for each name, all of which have proposed."""
    world = World()
    session = world.session()
    for number, name in enumerate(names):
        node, wire = await world.node(name, fingerprint=bytes([number]) * 16)
        world.leases.rematch()
        world.later(5.0)
        await propose(world, node, wire)
    leases = world.leases.of_session(session)
    assert [lease.peer_id for lease in leases] == list(names)
    return world, session, leases


async def test_one_that_brings_nothing_rests() -> None:
    world, session, _ = await drafted("a")
    serve(world, session, [NOBODY] * 8)
    assert world.leases.of_session(session) == []
    assert 0 < world.leases.rest_s(world.leases.nodes[0].peer_id) <= 10.0


async def test_one_that_brings_a_tenth_stays() -> None:
    world, session, (lease,) = await drafted("a")
    serve(world, session, [TokenSource(lease.source), *[NOBODY] * 9], 60.0)
    assert world.leases.of_session(session) == [lease]


@pytest.mark.parametrize("by_engine", [TokenSource(ngram=True), TokenSource(own=True)])
async def test_what_the_engine_guesses_by_itself_is_not_missed(by_engine: TokenSource) -> None:
    world, session, (lease,) = await drafted("a")
    serve(world, session, [by_engine] * 8, 60.0)
    assert world.leases.of_session(session) == [lease]


@pytest.mark.parametrize("known", ["ngram", "own"])
async def test_one_that_repeats_what_the_engine_guesses_rests(known: str) -> None:
    world, session, (lease,) = await drafted("a")
    parroted = TokenSource(lease.source, ngram=known == "ngram", own=known == "own")
    serve(world, session, [parroted, parroted, *[NOBODY] * 6])
    assert world.leases.of_session(session) == []


async def test_requests_of_one_token_are_held_against_nobody() -> None:
    world, session, (lease,) = await drafted("a")
    serve(world, session, [NOBODY] * 8, 60.0, is_first=True)
    assert world.leases.of_session(session) == [lease]


async def test_a_node_that_reads_a_long_prompt_has_a_while_to_come() -> None:
    world, session, (lease,) = await drafted("a")
    lease.begin(world.leases.nodes[0], world.now_s)
    lease.patience_s = 30.0
    serve(world, session, [NOBODY] * 8, 29.0, is_seen=False)
    assert world.leases.of_session(session) == [lease]
    serve(world, session, [NOBODY] * 8, is_seen=False)
    assert world.leases.of_session(session) == []


async def test_two_nodes_of_a_session_are_judged_as_one() -> None:
    world, session, (first, second) = await drafted("a", "b")
    serve(world, session, [NOBODY] * 8, 9.0)
    assert len(world.leases.of_session(session)) == 2
    serve(world, session, [TokenSource(first.source)] * 8, 2.0)
    assert [world.leases.rest_s(lease.peer_id) for lease in (first, second)] == [0.0, 0.0]
    world, session, (first, second) = await drafted("a", "b")
    serve(world, session, [NOBODY] * 8)
    assert world.leases.of_session(session) == []
    assert all(world.leases.rest_s(lease.peer_id) > 0.0 for lease in (first, second))


async def test_who_had_a_token_second_has_brought_it_too() -> None:
    world, session, (first, second) = await drafted("a", "b")
    serve(world, session, [TokenSource(first.source, second.source)] * 2, 60.0)
    assert world.leases.of_session(session) == [first, second]
    serve(world, session, [TokenSource(first.source)] * 2, 60.0)
    assert world.leases.of_session(session) == [first]


async def test_one_whose_trees_are_always_dead_is_found_out_in_short_answers_too() -> None:
    world, session, (lease,) = await drafted("a")
    for number in range(2, 60):
        serve(world, session, [NOBODY] * 8, 1.0, is_seen=False)
        if world.leases.rest_s(lease.peer_id):
            return
        world.sessions.remove(session)
        world.leases.close(session, "stop")
        session = world.session(number)
        (lease,) = world.leases.of_session(session)
        lease.tree_no, lease.proposed_s = 1, world.now_s  # it proposes at once
    raise AssertionError("it is never sent away")


async def test_a_lost_lease_is_not_resumed_during_a_rest() -> None:
    world, session, (lease,) = await drafted("a")
    while not world.leases.rest_s(lease.peer_id):
        serve(world, session, [NOBODY] * 8, STEP_S)
    world.leases.leave(world.leases.nodes[0])  # before the next review
    resume = m.Resume(lease.lease_id, session.prompt_length)
    node, wire = await world.node("a")
    assert await ask(node, wire, world.leases, resume) == "full"
    world.now_s += 10.0
    assert await ask(node, wire, world.leases, resume) == "open"


async def test_after_its_rest_it_has_one_session_until_it_is_judged_again() -> None:
    world, session, _ = await drafted("a")
    serve(world, session, [NOBODY] * 8)
    world.session(2)
    world.session(3)
    (node,) = world.leases.nodes
    assert world.leases.of_node(node) == []
    world.later(10.0)
    (lease,) = world.leases.of_node(node)
    tokens = [TokenSource(lease.source), *[NOBODY] * 7]
    serve(world, lease.session, tokens, 15.0)
    assert len(world.leases.of_node(node)) == 3
