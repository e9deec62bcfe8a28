"""Who may draft for what: leases given, resumed, refused and ended."""

from coordinator.engine.messages import DropSource
from coordinator.matchmaker import RESUME_WINDOW_S
from specedge_p2p.wire import messages as m
from tests.support.lease_world import LEASE_S, World, ask, opened
from tests.support.links import proposal
from tests.support.node_links import write_all


async def test_law2_one_owner_a_resumed_node_is_told_what_it_missed() -> None:
    world = World()
    session = world.session()
    node, wire = await world.node()
    world.leases.rematch()
    lease_id = (await opened(node, wire)).lease_id
    world.leases.leave(node)
    assert [type(x) for x in world.leases.engine_outbox] == [DropSource]
    world.commit(session, 5, 6, 7)
    node, wire = await world.node()
    assert await ask(node, wire, world.leases, m.Resume(lease_id, 3)) == "open"
    (missed,) = [x for x in wire.messages if isinstance(x, m.Verdict)]
    assert (missed.from_position, len(missed.token_ids)) == (3, 6)
    assert wire.machine.committed(1) == 5
    assert len(world.leases.sources(session)) == 1
    assert [session.nodes_by_source[s.source] for s in world.leases.sources(session)] == ["a"]


async def test_law6_privacy_nobody_resumes_the_lease_of_another() -> None:
    """A lease that leaked shows its session to nobody but the node that it was given to."""
    world = World()
    session = world.session()
    node, wire = await world.node()
    world.leases.rematch()
    lease_id = (await opened(node, wire)).lease_id
    world.leases.leave(node)
    thief, thief_wire = await world.node("thief", max_sessions=8)
    assert await ask(thief, thief_wire, world.leases, m.Resume(lease_id, 2)) == "unknown_lease"
    assert world.leases.sources(session) == []


async def test_resumes_that_cannot_be_are_refused_with_a_code() -> None:
    world = World()
    session = world.session()
    node, wire = await world.node()
    world.leases.rematch()
    lease_id = (await opened(node, wire)).lease_id
    world.leases.leave(node)
    node, wire = await world.node()
    resume = m.Resume(lease_id, 2)
    assert await ask(node, wire, world.leases, m.Resume(b"?" * 16, 2)) == "unknown_lease"
    assert await ask(node, wire, world.leases, m.Resume(lease_id, 1)) == "bad_position"
    assert await ask(node, wire, world.leases, m.Resume(lease_id, 3)) == "bad_position"
    node.max_sessions = 0
    assert await ask(node, wire, world.leases, resume) == "full"
    node.max_sessions = 8
    assert await ask(node, wire, world.leases, resume) == "open"
    assert await ask(node, wire, world.leases, resume) == "taken"
    world.leases.close(session, "stop")
    assert await ask(node, wire, world.leases, resume) == "unknown_lease"


async def test_a_node_resumes_beside_another_but_never_beside_two() -> None:
    world = World()
    session = world.session()
    leases = []
    for name in ("a", "b", "c"):
        node, wire = await world.node(name)
        world.leases.rematch()
        leases.append((await opened(node, wire)).lease_id)
        world.leases.leave(node)
    answers = []
    for name, lease_id in zip(("a", "b", "c"), leases, strict=True):
        node, wire = await world.node(name)
        answers.append(await ask(node, wire, world.leases, m.Resume(lease_id, 2)))
    assert answers == ["open", "open", "taken"]
    assert world.leases.drafting_peers(session) == ("a", "b")
    roles = [lease.role for lease in world.leases.of_session(session) if lease.node is not None]
    assert roles == ["active", "standby"]


async def test_a_lease_that_nobody_comes_back_for_ends() -> None:
    world = World()
    world.session()
    node, wire = await world.node()
    world.leases.rematch()
    lease_id = (await opened(node, wire)).lease_id
    world.leases.leave(node)
    world.now_s += LEASE_S + 1
    world.leases.rematch()
    node, wire = await world.node()
    assert await ask(node, wire, world.leases, m.Resume(lease_id, 2)) == "unknown_lease"


async def test_a_node_that_came_back_is_given_time_to_resume() -> None:
    world = World()
    session = world.session()
    node, wire = await world.node()
    world.leases.rematch()
    await opened(node, wire)
    node, wire = await world.node()  # a new link of the same peer: the older one has to go
    world.leases.rematch()
    assert world.leases.sources(session) == []
    world.now_s += RESUME_WINDOW_S + 0.1
    world.leases.rematch()
    assert len(world.leases.sources(session)) == 1


async def test_a_node_that_has_left_leaves_nothing_behind() -> None:
    """Also where no session lives, so that nobody ever looks at the nodes."""
    world = World()
    for i in range(50):
        node, _ = await world.node(f"node-{i}")
        world.leases.leave(node)
    older, _ = await world.node("a")
    newer, _ = await world.node("a")
    pool = world.leases._matchmaker._pool
    assert list(pool.peers) == ["a"]
    world.leases.leave(older)  # its link ends after the new one has begun
    assert list(pool.peers) == ["a"]
    world.leases.leave(newer)
    assert list(pool.peers) == []
    assert world.leases.nodes == ()


async def test_a_released_session_goes_to_another_node_and_never_back() -> None:
    world = World()
    session = world.session()
    node, wire = await world.node("a")
    world.leases.rematch()
    head = await opened(node, wire)
    node.machine.receive(wire.machine.send(m.Release(head.session_no)))
    world.leases.release(node, head.session_no)
    world.leases.rematch()
    assert world.leases.sources(session) == []
    await world.node("b")
    world.leases.rematch()
    assert world.leases.drafting_peers(session) == ("b",)


async def test_trees_that_died_with_an_engine_bring_nothing_more() -> None:
    world = World()
    world.session()
    node, wire = await world.node()
    world.leases.rematch()
    await opened(node, wire)
    old = proposal([5, 6], [0, 1], base_position=2)
    assert world.leases.accept(node, old) is not None
    node.machine.receive(wire.machine.send(old))
    world.leases.restart_trees()
    # It crossed with the word that its tree has ended; the engine has never heard of the tree.
    more = proposal([7], [1], first_index=3, base_position=2)
    assert world.leases.accept(node, more) is None
    wire.frames.clear()
    await write_all(node)
    (told,) = [x for x in wire.messages if isinstance(x, m.Verdict)]
    assert told.restart_tree_no == 1
    assert world.leases.accept(node, proposal([5], [0], tree_no=2, base_position=2)) is not None


async def test_law6_privacy_a_session_is_offered_where_its_user_allowed_only() -> None:
    world = World()
    await world.node("a")
    private, trusted = world.session(1, volunteers="none"), world.session(2, volunteers="allowed")
    assert world.leases.sources(private) == world.leases.sources(trusted) == []
    await world.node("b")
    world.leases.rematch()
    assert world.leases.sources(private) == []
    assert world.leases.drafting_peers(trusted) == ("b",)


async def test_closing_a_session_tells_its_node_and_forgets_its_leases() -> None:
    world = World()
    session = world.session()
    node, wire = await world.node()
    world.leases.rematch()
    await opened(node, wire)
    world.commit(session, 4)
    world.leases.close(session, "stop")
    await write_all(node)
    assert wire.machine.sessions == ()
    assert world.leases.of_node(node) == world.leases.of_session(session) == []
