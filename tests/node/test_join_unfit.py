"""Coordinators that cannot use a node: they cost themselves, not the node."""

import gc
import logging
from pathlib import Path

import pytest
import trio

from node.link_life import Refused
from node.selection import NoFit
from node.settings import NodeSettings
from node.unfit import UNFIT_S
from specedge_p2p.lm.ports import ModelError
from tests.support.join_world import ELSEWHERE, FOREIGN, HERE, THERE, World, by_hand, found


async def test_a_foreign_coordinator_does_not_end_a_node(
    autojump_clock: object, tmp_path: Path
) -> None:
    """The node's own coordinator restarts, and meanwhile another one is all that is found."""
    world = World(NodeSettings(tmp_path))
    own, foreign = found(), found(ELSEWHERE, fingerprints=(FOREIGN,))
    generation = world.coordinator.add(1, num_new=400)
    async with world.serving(), trio.open_nursery() as nursery:
        nursery.start_soon(world.loop.run)
        await trio.sleep(1.5)
        world.found = [foreign]
        world.network.drop_links(HERE.peer_id, THERE.peer_id)
        await trio.sleep(30)
        assert not generation.is_done
        world.found = [foreign, own]
        await trio.sleep(70)
        assert generation.tokens == generation.truth
        world.loop.leave()
    assert world.coordinator.num_links == 2
    assert world.other.num_links == 0
    assert world.prepared == ["toy-draft"]


async def test_a_hostile_refusal_costs_the_hostile_one(
    autojump_clock: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(NodeSettings(tmp_path))
    world.other.refusal = ("banned", "go away")
    world.found = [found(ELSEWHERE, 0.001)]
    generation = world.coordinator.add(1)
    with caplog.at_level(logging.WARNING):
        async with world.serving(), trio.open_nursery() as nursery:
            nursery.start_soon(world.loop.run)
            await trio.sleep(60)  # it is the only one
            assert world.other.num_links == 1
            world.found.append(found())
            await trio.sleep(60)
            assert generation.tokens == generation.truth
            world.loop.leave()
    assert world.other.num_links == 1
    assert caplog.text.count("go away") == 1
    assert "none of the coordinators found can use this node" in caplog.text


async def test_a_coordinator_that_was_unfit_is_asked_again(
    autojump_clock: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(NodeSettings(tmp_path))
    world.coordinator.refusal = ("not-allowed", "this node is not on the list")
    with caplog.at_level(logging.WARNING):
        async with world.serving(), trio.open_nursery() as nursery:
            nursery.start_soon(world.loop.run)
            await trio.sleep(2 * UNFIT_S)
            assert world.coordinator.num_links == 2
            world.coordinator.refusal = None
            await trio.sleep(2 * UNFIT_S)
            assert world.loop.worker is not None
            assert world.loop.worker.num_welcomes == 1
            world.loop.leave()
    assert caplog.text.count("not on the list") == 1


@pytest.mark.parametrize("first", [(), ("broken",), ("..", "/etc")])
async def test_with_auto_the_next_coordinator_is_asked(
    autojump_clock: object, tmp_path: Path, first: tuple[str, ...]
) -> None:
    """The first suggests nothing, or what cannot be loaded, or what no name is."""
    world = World(NodeSettings(tmp_path), broken=["broken"])
    world.found = [found(ELSEWHERE, 0.001, drafts=first), found()]
    generation = world.coordinator.add(1)
    assert await world.run(30) is None
    assert generation.tokens == generation.truth
    assert world.other.num_links == 0
    assert world.prepared.count("broken") == (first == ("broken",))


async def test_a_draft_model_taken_in_vain_makes_way_for_another(
    autojump_clock: object, tmp_path: Path
) -> None:
    """Never are two in memory, though what was loaded was frozen, as a real node does."""
    world = World(NodeSettings(tmp_path), tokenizers={"strange": FOREIGN}, is_freezing=True)
    world.other.refusal = ("banned", "go away")
    world.found = [
        found(ELSEWHERE, 0.001, fingerprints=(FOREIGN,), drafts=("strange",)),
        found(),
    ]
    generation = world.coordinator.add(1)
    try:
        assert await world.run(30) is None
    finally:
        gc.unfreeze()
    assert world.prepared == ["strange", "toy-draft"]
    assert world.most_alive == 1
    assert generation.tokens == generation.truth


async def test_a_draft_model_stays_while_its_coordinator_is_only_full(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(NodeSettings(tmp_path), tokenizers={"strange": FOREIGN})
    world.other.refusal = ("full", "9 nodes are connected")
    world.coordinator.refusal = ("full", "9 nodes are connected")
    world.found = [
        found(ELSEWHERE, 0.001, fingerprints=(FOREIGN,), drafts=("strange",)),
        found(),
    ]
    assert await world.run(300) is None
    assert world.prepared == ["strange"]


async def test_what_the_suggested_model_turns_out_to_be_is_checked_before_it_is_offered(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(NodeSettings(tmp_path), tokenizers={"strange": FOREIGN})
    world.found = [found(ELSEWHERE, 0.001, drafts=("strange",)), found()]
    generation = world.coordinator.add(1)
    assert await world.run(30) is None
    assert world.other.num_links == 0
    assert generation.tokens == generation.truth


async def test_what_the_user_named_ends_the_loop_when_none_of_it_is_of_use(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(by_hand(tmp_path, draft="mine"), tokenizers={"mine": FOREIGN})
    problem = await world.run(30)
    assert isinstance(problem, NoFit)
    assert "does not fit" in str(problem)

    world = World(by_hand(tmp_path, THERE, ELSEWHERE))
    world.coordinator.refusal = ("banned", "go away")
    world.other.refusal = ("version", "too old")
    world.found = [found(ELSEWHERE, 0.001), found()]
    problem = await world.run(30)
    assert isinstance(problem, Refused)
    assert problem.code == "version"  # the first that was asked

    world = World(NodeSettings(tmp_path, draft_models=("broken", "broken too")), broken=["broken"])
    problem = await world.run(30)
    assert isinstance(problem, ModelError)


@pytest.mark.parametrize("other", ["not found", "full", "found by itself"])
async def test_while_something_is_left_to_try_the_loop_goes_on(
    autojump_clock: object, tmp_path: Path, other: str
) -> None:
    given = [THERE] if other == "found by itself" else [THERE, ELSEWHERE]
    world = World(by_hand(tmp_path, *given))
    world.coordinator.refusal = ("banned", "go away")
    world.other.refusal = ("full", "9 nodes are connected")
    world.found = [found()] if other == "not found" else [found(), found(ELSEWHERE)]
    assert await world.run(300) is None


async def test_after_a_welcome_no_refusal_ends_the_loop(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(by_hand(tmp_path))
    async with world.serving(), trio.open_nursery() as nursery:
        nursery.start_soon(world.loop.run)
        await trio.sleep(3)
        world.coordinator.refusal = ("banned", "go away")
        world.network.drop_links(HERE.peer_id, THERE.peer_id)
        await trio.sleep(60)
        assert world.coordinator.num_links == 2
        world.loop.leave()
