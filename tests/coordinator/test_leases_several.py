"""Several nodes on one session: second models, standbys, moves; and what is learned of nodes."""

from coordinator.engine.messages import DropSource, StepDone
from coordinator.scheduler.needs import SETTLED_S
from specedge_p2p.wire import messages as m
from tests.support.lease_world import World, opened, propose
from tests.support.node_links import CONTEXT, write_all
from tests.support.sessions import make_session


async def test_a_second_node_drafts_with_another_model_and_both_are_named_to_the_engine() -> None:
    world = World()
    session = world.session()
    first, wire = await world.node("a")
    world.leases.rematch()
    await propose(world, first, wire)
    other, _ = await world.node("b", fingerprint=b"another model")
    world.later(SETTLED_S + 0.1)
    assert world.leases.drafting_peers(session) == ("a", "b")
    sources = world.leases.sources(session)
    assert [s.draft for s in sources] == [1, 2]
    assert len({s.source for s in sources}) == 2
    assert [lease.role for lease in world.leases.of_session(session)] == ["active", "standby"]
    world.leases.leave(first)
    assert world.leases.drafting_peers(session) == ("b",)
    assert [lease.role for lease in world.leases.of_node(other)] == ["active"]


async def test_a_session_that_finds_no_place_gets_that_of_a_second_node_at_once() -> None:
    world = World()
    nodes = [await world.node("a", 1), await world.node("b", 1, b"another model")]
    first = world.session()
    assert world.leases.drafting_peers(first) == ("a", "b")
    for node, wire in nodes:
        await propose(world, node, wire)
    second = world.session(2)
    assert world.leases.drafting_peers(first) == ("a",)
    assert world.leases.drafting_peers(second) == ("b",)
    third = world.session(3)
    assert world.leases.drafting_peers(third) == ()


async def test_a_late_node_is_replaced_without_a_gap() -> None:
    world = World()
    session = world.session()
    slow, slow_wire = await world.node("a")
    world.leases.rematch()
    await propose(world, slow, slow_wire)
    fresh, fresh_wire = await world.node("b")
    world.commit(session, 5)
    world.later(0.2)
    assert world.leases.drafting_peers(session) == ("a",)
    world.later(0.3)  # still nothing in answer to the verdict
    assert world.leases.drafting_peers(session) == ("a", "b")
    world.later(0.3)  # the new one has said nothing yet
    assert world.leases.drafting_peers(session) == ("a", "b")
    await propose(world, fresh, fresh_wire)
    old_source = world.leases.sources(session)[0].source
    world.later(0.3)
    assert world.leases.drafting_peers(session) == ("b",)
    assert DropSource(session.number, old_source) in world.leases.engine_outbox
    await write_all(slow)
    assert slow_wire.machine.sessions == ()


async def test_a_node_that_proposes_nothing_gets_a_standby_later_after_a_long_prompt() -> None:
    for num_tokens, waits_s in ((0, 2.1), (1000, 4.2)):
        world = World()
        session = make_session(1)
        session.token_ids += [1] * num_tokens
        world.sessions.add(session)
        for name in ("a", "b"):
            await world.node(name)
        world.leases.rematch()
        world.later(waits_s - 0.2)
        assert len(world.leases.drafting_peers(session)) == 1
        world.later(0.3)
        assert len(world.leases.drafting_peers(session)) == 2


async def test_a_node_that_brings_nothing_loses_its_session_to_a_new_one() -> None:
    world = World()
    session = world.session()
    bad, bad_wire = await world.node("a")
    world.leases.rematch()
    await propose(world, bad, bad_wire)
    world.judge(session, 150, accepted=False)
    fresh, fresh_wire = await world.node("b", fingerprint=b"another model")
    world.later(SETTLED_S + 1)
    assert world.leases.drafting_peers(session) == ("a", "b")
    await propose(world, fresh, fresh_wire)
    world.judge(session, 100, accepted=True)
    world.later(1)
    assert world.leases.drafting_peers(session) == ("b",)
    world.later(60)
    assert world.leases.drafting_peers(session) == ("b",)


async def test_the_factor_follows_what_the_engine_saw() -> None:
    world = World()
    session = world.session()
    node, wire = await world.node("a")
    world.leases.rematch()
    await propose(world, node, wire)
    (before,) = world.leases.sources(session)
    assert (before.factor, before.max_rows) == (0.5, 8)
    world.judge(session, 100, accepted=True)
    (after,) = world.leases.sources(session)
    assert after.factor > 0.9
    assert after.max_rows == 0
    assert after.quality > before.quality
    world.judge(session, 100, accepted=False)
    assert world.leases.sources(session)[0].factor < 0.3


async def test_slow_steps_let_trees_grow_larger() -> None:
    world = World()
    session = world.session()
    node, wire = await world.node("a")
    world.leases.rematch()
    assert (await opened(node, wire)).wishes.max_unverified == 256
    world.leases.calibrate(15 * node.level_time_s, CONTEXT)
    wire.frames.clear()
    await write_all(node)
    (tuned,) = [x for x in wire.messages if isinstance(x, m.Tune)]
    assert tuned.wishes.max_unverified == 512
    world.sessions.remove(session)
    world.leases.close(session, "stop")
    world.session(2)
    assert (await opened(node, wire)).wishes.max_unverified == 512
    world.leases.calibrate(0.01, CONTEXT)  # what was allowed stays allowed
    wire.frames.clear()
    await write_all(node)
    assert wire.messages == []


async def test_law7_bounded_trees_grow_larger_at_nodes_that_have_the_time_only() -> None:
    """However quick a node says it is, it speaks for itself alone."""
    world = World()
    world.leases.calibrate(0.1, CONTEXT)
    allowed = {}
    for number, level_time_s in enumerate([0.1 / 15, 0.01, 0.0, 1e-9], 1):
        node, wire = await world.node(str(number), max_sessions=1)
        node.level_time_s = level_time_s
        world.session(number)
        allowed[level_time_s] = (await opened(node, wire)).wishes.max_unverified
    assert allowed == {0.1 / 15: 512, 0.01: 256, 0.0: 256, 1e-9: 512}


async def test_a_node_that_has_become_quicker_is_told_once() -> None:
    world = World()
    world.leases.calibrate(0.1, CONTEXT)
    nodes = [await world.node(name, max_sessions=1) for name in ("a", "b")]
    for number, (node, wire) in enumerate(nodes, 1):
        world.session(number)
        await opened(node, wire)
        wire.frames.clear()
    node, wire = nodes[0]
    world.leases.hear_capacity(node, m.Capacity(1, 0.001))
    for _ in range(2):
        world.leases.learn(StepDone(1, 0.0, 0.1, 0.0, 1, []))
    for each, _ in nodes:
        await write_all(each)
    assert [x.wishes.max_unverified for x in wire.messages if isinstance(x, m.Tune)] == [512]
    assert not any(isinstance(x, m.Tune) for x in nodes[1][1].messages)


async def test_what_a_node_may_have_live_it_may_after_it_has_come_back() -> None:
    """Its tree is as large as it was, though its machine has become slower."""
    world = World()
    world.leases.calibrate(0.1, CONTEXT)
    node, wire = await world.node("a")
    node.level_time_s = 0.001
    world.session()
    head = await opened(node, wire)
    world.leases.leave(node)
    node, wire = await world.node("a")
    node.level_time_s = 0.09
    resume = m.Resume(head.lease_id, head.num_tokens)
    (heard,) = node.machine.receive(wire.machine.send(resume))
    assert isinstance(heard, m.Resume)
    world.leases.resume(node, heard)
    again = await opened(node, wire)
    assert again.resumed
    assert again.wishes.max_unverified == head.wishes.max_unverified == 512


async def test_two_silent_nodes_do_not_keep_a_session_from_a_third() -> None:
    world = World()
    session = world.session()
    for name in ("a", "b"):
        await world.node(name)
    world.leases.rematch()
    world.later(2.3)
    assert world.leases.drafting_peers(session) == ("a", "b")
    good, wire = await world.node("c")
    world.later(1.0)  # "b" has had less than its time
    assert world.leases.drafting_peers(session) == ("a", "b")
    world.later(1.3)
    assert len(world.leases.drafting_peers(session)) == 2
    await propose(world, good, wire)
    world.later(0.3)
    assert world.leases.drafting_peers(session) == ("c",)


async def test_what_a_node_says_of_further_sessions_decides_how_many_it_gets() -> None:
    num_given = []
    for level_session_time_s in (0.001, 0.02):
        world = World()
        world.leases.calibrate(0.15, CONTEXT)
        quick, _ = await world.node("quick")
        world.leases.hear_capacity(quick, m.Capacity(8, 0.02, level_session_time_s))
        slow, _ = await world.node("slow")
        slow.level_time_s = 0.03
        for number in range(1, 9):
            world.session(number)
        num_given.append([len(world.leases.of_node(node)) for node in (quick, slow)])
    assert num_given == [[5, 3], [2, 6]]


async def test_a_machine_whose_levels_grow_with_its_sessions_is_not_late_for_that() -> None:
    world = World()
    node, wire = await world.node("a")
    node.level_time_s, node.level_session_time_s = 0.02, 0.02
    session = world.session(1)
    await propose(world, node, wire)
    for number in range(2, 9):
        world.session(number)
    assert len(world.leases.of_node(node)) == 8
    await world.node("b")
    world.commit(session, 5)
    world.later(2.5)  # fewer than twenty of its levels
    assert world.leases.drafting_peers(session) == ("a",)
    world.later(1.0)
    assert world.leases.drafting_peers(session) == ("a", "b")


async def test_law6_privacy_a_standby_is_one_of_the_allowed() -> None:
    world = World()
    await world.node("b")
    session = world.session(1, volunteers="allowed")
    await world.node("a", fingerprint=b"another model")
    world.later(60)
    assert world.leases.drafting_peers(session) == ("b",)
