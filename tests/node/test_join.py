"""The join loop in virtual time: which coordinator, how often, and how it leaves."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from node.link_life import Refused
from node.selection import NoFit, check_tokenizer, draft_models_for, in_order
from node.settings import NodeSettings
from specedge_p2p.lm.ports import Children, ModelError, Rows
from specedge_p2p.lm.toy import ToyModel
from specedge_p2p.overlay.discovery import FoundCoordinator
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL
from specedge_p2p.wire.messages import Goodbye, Resume
from tests.support.join_world import ELSEWHERE, FINGERPRINT, HERE, THERE, World, by_hand, found


def names(candidates: Sequence[FoundCoordinator]) -> list[str]:
    return [candidate.record.peer_id for candidate in candidates]


def test_near_idle_and_given_coordinators_come_first() -> None:
    near, far = found(THERE, 0.01), found(ELSEWHERE, 0.1)
    assert names(in_order([far, near])) == names([near, far])
    assert names(in_order([near, far], by_hand=[far.address])) == names([far, near])
    full = found(THERE, 0.01, load=1.0)
    assert names(in_order([full, far])) == names([far, full])
    busy, idle = found(THERE, 0.010, load=0.9), found(ELSEWHERE, 0.015)
    assert names(in_order([busy, idle])) == names([idle, busy])


def test_only_a_fitting_tokenizer_is_asked() -> None:
    check_tokenizer(found().record, FINGERPRINT)
    check_tokenizer(found(fingerprints=(b"x" * 16, FINGERPRINT)).record, FINGERPRINT)
    check_tokenizer(found(fingerprints=()).record, FINGERPRINT)  # left to the handshake
    with pytest.raises(NoFit, match=r"does not fit .* toy"):
        check_tokenizer(found(fingerprints=(b"x" * 16,)).record, FINGERPRINT)


def test_auto_stands_for_the_first_suggestions() -> None:
    record = found().record
    assert draft_models_for(("auto",), record) == ("toy-draft", "other")
    assert draft_models_for(("mine",), record) == ("mine",)
    assert draft_models_for(("mine", "auto", "other"), record) == ("mine", "toy-draft", "other")
    many = found(drafts=tuple("abcdef")).record
    assert draft_models_for(("auto",), many) == ("a", "b", "c")
    with pytest.raises(NoFit, match="--draft-model"):
        draft_models_for(("auto",), found(drafts=()).record)


@pytest.mark.parametrize(
    "name",
    [
        *("/etc", "~nobody/x", "..", "a/..", "a b/c", "a/b\n", "a\0b/c", "a--b/c", "a/b.git"),
        *("a/b/c", "", "x" * 97, "\u00e4/b"),
    ],
)
def test_a_stranger_suggests_names_of_the_hub_alone(name: str) -> None:
    """Others are not even tried: some would end the process, others name what lies on its disk."""
    record = found(drafts=(name, "Qwen/Qwen3-1.7B", "demo-draft")).record
    assert draft_models_for(("auto",), record) == ("Qwen/Qwen3-1.7B", "demo-draft")
    assert draft_models_for((name,), record) == (name,)  # the user may


async def test_it_knows_whether_it_is_connected_and_when_it_tries_again(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(NodeSettings(tmp_path))
    overlay = world.network.join(THERE.peer_id)
    async with trio.open_nursery() as nursery:
        async with overlay.serve(DRAFT_PROTOCOL, world.coordinator.handle):
            nursery.start_soon(world.loop.run)
            assert not world.loop.is_linked
            await trio.sleep(5)
            assert world.loop.is_linked
            assert world.loop.next_try_s is None
        world.network.kill(THERE.peer_id)
        await trio.sleep(0.01)
        assert not world.loop.is_linked
        assert world.loop.next_try_s is not None
        assert world.loop.next_try_s > trio.current_time()
        world.loop.leave()


async def test_a_node_drafts_leaves_and_says_goodbye(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(NodeSettings(tmp_path))
    generation = world.coordinator.add(1)
    overlay = world.network.join(THERE.peer_id)
    async with overlay.serve(DRAFT_PROTOCOL, world.coordinator.handle), trio.open_nursery() as n:
        n.start_soon(world.loop.run)
        await trio.sleep(5)
        assert generation.tokens == generation.truth
        assert generation.num_accepted > 0
        world.loop.leave()
        await trio.sleep(2)
    assert world.prepared == ["toy-draft"]
    assert world.coordinator.count(Goodbye) == 1
    assert world.coordinator.hellos[0].level_time_s == pytest.approx(0.004, rel=0.05)
    assert world.coordinator.hellos[0].tokenizer_fingerprint == FINGERPRINT


async def test_a_lost_link_is_made_anew_and_resumed(autojump_clock: object, tmp_path: Path) -> None:
    world = World(NodeSettings(tmp_path))
    generation = world.coordinator.add(1, num_new=300)
    overlay = world.network.join(THERE.peer_id)
    async with overlay.serve(DRAFT_PROTOCOL, world.coordinator.handle), trio.open_nursery() as n:
        n.start_soon(world.loop.run)
        for _ in range(3):
            await trio.sleep(1.5)
            world.network.drop_links(HERE.peer_id, THERE.peer_id)
        await trio.sleep(10)
        assert generation.tokens == generation.truth
        assert world.coordinator.num_links >= 3
        assert world.coordinator.count(Resume) >= 1
        assert world.prepared == ["toy-draft"]  # the model is loaded once
        gaps = [b - a for a, b in zip(world.asked, world.asked[1:], strict=False)]
        assert max(gaps) < 4  # after a served link the wait starts again at a second
        world.loop.leave()


async def test_churn_and_loss_change_no_token(autojump_clock: object, tmp_path: Path) -> None:
    world = World(
        NodeSettings(
            tmp_path,
            stretch=2.0,
            link_delay_s=0.02,
            link_jitter_s=0.01,
            link_loss=0.05,
            link_churn_s=1.0,
        )
    )
    generation = world.coordinator.add(1, num_new=300)
    overlay = world.network.join(THERE.peer_id)
    async with overlay.serve(DRAFT_PROTOCOL, world.coordinator.handle), trio.open_nursery() as n:
        n.start_soon(world.loop.run)
        await trio.sleep(30)
        assert generation.tokens == generation.truth
        assert generation.num_accepted > 0
        assert world.coordinator.count(Resume) >= 1
        # lives of 1 to 3 s and waits of 2 s, stretched both
        assert 30 / 5.5 <= world.coordinator.num_links <= 30 / 3 + 1
        world.loop.leave()


async def test_who_says_welcome_and_hangs_up_is_asked_less_and_less(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(NodeSettings(tmp_path))
    overlay = world.network.join(THERE.peer_id)
    welcomed = trio.Semaphore(0)
    world.coordinator.on_link = welcomed.release

    async def hang_up() -> None:
        while True:
            await welcomed.acquire()
            await trio.sleep(0.1)
            world.network.drop_links(HERE.peer_id, THERE.peer_id)

    async with overlay.serve(DRAFT_PROTOCOL, world.coordinator.handle), trio.open_nursery() as n:
        n.start_soon(hang_up)
        n.start_soon(world.loop.run)
        await trio.sleep(100)
        n.cancel_scope.cancel()
    assert world.loop.worker is not None
    assert world.loop.worker.num_welcomes >= 6
    gaps = [round(b - a) for a, b in zip(world.asked, world.asked[1:], strict=False)]
    assert gaps[1:6] == [2, 4, 8, 16, 32]  # the first has the loading of the model in it


def fail_at_first(monkeypatch: pytest.MonkeyPatch, num_failing: int) -> list[int]:
    """The first forwards of any model fail; returned are the sizes of all batches, as they come."""
    expand, forwards = ToyModel.expand, []

    def fail(self: ToyModel, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        forwards.append(len(batch))
        if len(forwards) <= num_failing:
            raise ModelError("no memory is left to choose tokens")
        return expand(self, batch, branch_width)

    monkeypatch.setattr(ToyModel, "expand", fail)
    return forwards


async def test_a_node_whose_model_fails_asks_less_and_less_until_it_runs(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_first(monkeypatch, 8)
    world = World(NodeSettings(tmp_path))
    generations = [world.coordinator.add(number) for number in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run, 200)
        for number in range(3, 12):
            await trio.sleep(5 if number < 11 else 60)
            generations.append(world.coordinator.add(number))
        await trio.sleep(30)
        world.loop.leave()
    gaps = [round(b - a) for a, b in zip(world.asked, world.asked[1:], strict=False)]
    assert gaps[1:] == [2, 4, 8, 16, 32]
    assert generations[-1].num_accepted > 0


async def test_a_model_that_failed_once_keeps_no_other_coordinator_waiting(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = fail_at_first(monkeypatch, 3)
    world = World(NodeSettings(tmp_path))
    world.found = [found(), found(ELSEWHERE, round_trip_s=0.05)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run, 200)
        for number in range(3):
            world.coordinator.add(number)
            while len(forwards) <= number:  # noqa: ASYNC110 - virtual time
                await trio.sleep(0.01)
        world.coordinator.refusal = ("full", "no place")
        others = [world.other.add(number) for number in range(3)]
        await trio.sleep(30)
        world.loop.leave()
    assert all(generation.num_accepted for generation in others)


async def test_without_coordinators_the_waits_double(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(NodeSettings(tmp_path))
    world.found = []
    with trio.move_on_after(100):
        await world.loop.run()
    gaps = [round(b - a) for a, b in zip(world.asked, world.asked[1:], strict=False)]
    assert gaps[:6] == [1, 2, 4, 8, 16, 32]


async def test_leaving_while_nobody_answers_is_at_once(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(NodeSettings(tmp_path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.loop.run)  # nobody serves at the address that was found
        await trio.sleep(20)
        started = trio.current_time()
        world.loop.leave()
    assert trio.current_time() - started < 0.1


async def test_a_final_refusal_ends_the_loop_and_others_do_not(
    autojump_clock: object, tmp_path: Path
) -> None:
    """Of the one coordinator that was given by hand."""
    world = World(by_hand(tmp_path))
    world.coordinator.refusal = ("full", "9 nodes are connected")
    overlay = world.network.join(THERE.peer_id)
    async with overlay.serve(DRAFT_PROTOCOL, world.coordinator.handle), trio.open_nursery() as n:

        async def change_mind() -> None:
            await trio.sleep(10)
            world.coordinator.refusal = ("tokenizer", "another tokenizer than the target")

        n.start_soon(change_mind)
        with pytest.raises(Refused, match="another tokenizer"):
            await world.loop.run()
    assert world.coordinator.num_links >= 3


async def test_a_model_given_by_name_is_loaded_before_anybody_is_asked(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(NodeSettings(tmp_path, draft_models=("mine",)))
    world.found = []
    world.loop.set_capacity(0)  # paused before there is a worker
    with trio.move_on_after(5):
        await world.loop.run()
    assert world.prepared == ["mine"]
    assert world.asked[0] >= 1.0
    assert world.loop.worker is not None
    assert world.loop.worker.hello().max_sessions == 0
