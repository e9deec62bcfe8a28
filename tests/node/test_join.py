"""The join loop in virtual time: which coordinator, how often, and how it leaves."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from node.drafter import LevelDone
from node.hardware import Benchmark, LevelTime
from node.join import Draft, JoinLoop, JoinPorts
from node.link_life import Refused
from node.receipts import ReceiptBook
from node.selection import NoFit, draft_model_for, in_order
from node.settings import NodeSettings
from node.worker import run_io_inline
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.record import CoordinatorRecord
from specedge_p2p.lm.toy import ToyModel, ToyParams
from specedge_p2p.overlay.discovery import FoundCoordinator
from specedge_p2p.overlay.memory import MemoryNetwork, address_of
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL
from specedge_p2p.wire.messages import Goodbye, Resume
from tests.support.scripted_coordinator import ScriptedCoordinator

HERE, THERE, ELSEWHERE = (Identity.generate() for _ in range(3))
FINGERPRINT = b"t" * 16


def found(
    identity: Identity = THERE,
    round_trip_s: float = 0.01,
    load: float = 0.0,
    fingerprints: tuple[bytes, ...] = (FINGERPRINT,),
    drafts: tuple[str, ...] = ("toy-draft", "other"),
) -> FoundCoordinator:
    address = address_of(identity.peer_id)
    record = CoordinatorRecord(
        peer_id=identity.peer_id,
        addresses=(address,),
        target_models=("toy",),
        tokenizer_fingerprints=fingerprints,
        draft_models=drafts,
        load=load,
        sequence=1,
        expires_at_s=1e12,
    )
    return FoundCoordinator(record, address, round_trip_s)


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
    stranger, friend = found(THERE, fingerprints=(b"x" * 16,)), found(ELSEWHERE, 1.0)
    assert names(in_order([stranger, friend], FINGERPRINT)) == names([friend])
    assert in_order([], FINGERPRINT) == ()
    with pytest.raises(NoFit, match="does not fit"):
        in_order([stranger], FINGERPRINT)
    assert in_order([found(fingerprints=())], FINGERPRINT)  # left to the handshake


def test_auto_takes_the_first_suggestion() -> None:
    assert draft_model_for("auto", found().record) == "toy-draft"
    assert draft_model_for("mine", found().record) == "mine"
    with pytest.raises(NoFit, match="--draft-model"):
        draft_model_for("auto", found(drafts=()).record)


class World:
    """A network, a coordinator, and a join loop whose parts are all inside this process."""

    def __init__(self, tmp_path: Path, draft_model: str = "auto") -> None:
        self.network = MemoryNetwork()
        self.coordinator = ScriptedCoordinator(THERE)
        self.book = ReceiptBook(None, HERE.peer_id)
        self.prepared: list[str] = []
        self.asked: list[float] = []
        self.found: list[FoundCoordinator] = [found()]
        ports = JoinPorts(
            overlay=self.network.join(HERE.peer_id),
            find=self._find,
            prepare=self._prepare,
            receipts=self.book,
            jitter=lambda: 0.0,
            run_level=_run_level,
            run_io=run_io_inline,
        )
        self.loop = JoinLoop(NodeSettings(home=tmp_path, draft_model=draft_model), ports, "test")

    async def _find(self) -> list[FoundCoordinator]:
        self.asked.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        return self.found

    async def _prepare(self, name: str) -> Draft:
        self.prepared.append(name)
        await trio.sleep(1)
        model = ToyModel(ToyParams(eos_bias=-60.0, perturbation=0.5))
        return Draft(
            name, model, FINGERPRINT, Benchmark((LevelTime(4, 0.004), LevelTime(16, 0.004)))
        )


async def _run_level(level: Callable[[], LevelDone]) -> LevelDone:
    await trio.sleep(0.004)
    return level()


async def test_a_node_drafts_leaves_and_says_goodbye(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(tmp_path)
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
    world = World(tmp_path)
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


async def test_without_coordinators_the_waits_double(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(tmp_path)
    world.found = []
    with trio.move_on_after(100):
        await world.loop.run()
    gaps = [round(b - a) for a, b in zip(world.asked, world.asked[1:], strict=False)]
    assert gaps[:6] == [1, 2, 4, 8, 16, 32]


async def test_leaving_while_nobody_answers_is_at_once(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.loop.run)  # nobody serves at the address that was found
        await trio.sleep(20)
        started = trio.current_time()
        world.loop.leave()
    assert trio.current_time() - started < 0.1


async def test_a_final_refusal_ends_the_loop_and_others_do_not(
    autojump_clock: object, tmp_path: Path
) -> None:
    world = World(tmp_path)
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
    world = World(tmp_path, draft_model="mine")
    world.found = []
    world.loop.set_capacity(0)  # paused before there is a worker
    with trio.move_on_after(5):
        await world.loop.run()
    assert world.prepared == ["mine"]
    assert world.asked[0] >= 1.0
    assert world.loop.worker is not None
    assert world.loop.worker.hello().max_sessions == 0
