"""One link's life, against a scripted coordinator over the overlay in memory, in virtual time."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise

import pytest
import trio

from node.drafter import Drafter, DrafterSettings, LevelDone
from node.level_times import LevelShape
from node.link import ReplayLink, backoff_s
from node.link_life import LinkEnd, Refused
from node.receipts import ReceiptBook
from node.worker import Worker, WorkerSettings, run_io_inline
from specedge_p2p.identity.keys import Identity
from specedge_p2p.lm.ports import Children, ModelError, OutOfMemory, Rows
from specedge_p2p.lm.toy import ToyModel, ToyParams
from specedge_p2p.overlay.memory import MemoryNetwork, MemoryOverlay
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL, Link
from specedge_p2p.wire.messages import (
    Capacity,
    Drain,
    Goodbye,
    GrowthWishes,
    Pong,
    Proposal,
    Receipt,
    ReceiptRequest,
    Release,
    Resume,
    Tune,
)
from tests.support.full_book import fill_disk, free_disk
from tests.support.receipt_chain import receipt_chain
from tests.support.scripted_coordinator import ScriptedCoordinator

LEVEL_S = 0.004
DRAFT = ToyParams(eos_bias=-60.0, perturbation=0.5)
HERE, THERE = Identity.generate(), Identity.generate()


async def run_level(level: Callable[[], LevelDone]) -> LevelDone:
    await trio.sleep(LEVEL_S)
    return level()


class Scene:
    def __init__(
        self,
        latency_s: float = 0.005,
        model: ToyModel | None = None,
        step_s: float = 0.02,
        heartbeat_s: float = 2.0,
    ) -> None:
        model = model or ToyModel(DRAFT)
        self.network = MemoryNetwork(latency_s=latency_s)
        self.coordinator = ScriptedCoordinator(THERE, step_s=step_s, heartbeat_s=heartbeat_s)
        self.node: MemoryOverlay = self.network.join(HERE.peer_id)
        self.book = ReceiptBook(None, HERE.peer_id)
        self.drafter = Drafter(model, DrafterSettings())
        settings = WorkerSettings("toy", b"m" * 16, b"t" * 16, 8, LEVEL_S, "test")
        self.worker = Worker(self.drafter, settings, self.book, run_level, run_io_inline)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        overlay = self.network.join(THERE.peer_id)
        async with overlay.serve(DRAFT_PROTOCOL, self.coordinator.handle):
            yield overlay.addresses[0]
            await trio.sleep(1)  # what is on its way arrives
        self.book.close()

    async def serve(self, address: str) -> LinkEnd:
        async with self.node.dial(address, DRAFT_PROTOCOL) as link:
            return await self.worker.serve(link)

    async def until_done(self, then: Callable[[], object] | None = None) -> None:
        while not self.coordinator.is_done:  # noqa: ASYNC110 - polled in virtual time
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        (then or self.worker.leave)()


async def run_to_the_end(scene: Scene) -> LinkEnd:
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.until_done)
        with trio.fail_after(60):
            return await scene.serve(address)


async def test_verdicts_flow_and_guesses_are_accepted(autojump_clock: object) -> None:
    scene = Scene()
    generations = [scene.coordinator.add(i) for i in range(3)]
    assert await run_to_the_end(scene) is LinkEnd.LEFT
    for generation in generations:
        assert generation.tokens == generation.truth
        assert len(generation.tokens) - len(generation.prompt) > 1.8 * generation.num_rounds
    stats = scene.worker.stats
    assert stats.num_accepted == sum(g.num_accepted for g in generations) > 0
    assert stats.num_committed == sum(g.num_new for g in generations)
    assert stats.num_sent >= stats.num_accepted
    assert scene.drafter.session_nos == ()  # closed ones leave nothing behind
    assert scene.coordinator.count(Goodbye) == 1


async def test_the_node_never_waits_for_a_verdict(autojump_clock: object) -> None:
    """While one verdict is on its way over a slow link, proposals go on and on."""
    scene = Scene(latency_s=0.2, step_s=1.0)
    scene.coordinator.add(1, num_new=60)
    await run_to_the_end(scene)
    times = [at for at, m in scene.coordinator.received if isinstance(m, Proposal)]
    assert len(times) >= 8
    gaps = [b - a for a, b in pairwise(times)]
    assert sorted(gaps)[len(gaps) // 2] < 0.02  # levels, not round trips of 0.4 s


async def test_one_frame_carries_the_gains_of_all_sessions(autojump_clock: object) -> None:
    scene = Scene()
    for i in range(3):
        scene.coordinator.add(i)
    await run_to_the_end(scene)
    by_time: dict[float, set[int]] = {}
    for at, message in scene.coordinator.received:
        if isinstance(message, Proposal):
            by_time.setdefault(at, set()).add(message.session_no)
    assert max(len(sessions) for sessions in by_time.values()) == 3


async def test_an_idle_node_sleeps(autojump_clock: object) -> None:
    scene = Scene()
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.serve, address)
        await trio.sleep(50)
        assert scene.worker.stats.num_levels == 0
        scene.worker.leave()


async def test_a_cut_link_is_resumed_where_it_was(autojump_clock: object) -> None:
    scene = Scene()
    generations = [scene.coordinator.add(i, num_new=80) for i in range(2)]
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.until_done)
        ends = []
        with trio.fail_after(60):
            nursery.start_soon(_drop_later, scene, 0.3)
            ends.append(await scene.serve(address))
            assert scene.drafter.session_nos  # leases wait for the next link
            for generation in generations:  # the engine goes on alone meanwhile
                start = len(generation.tokens)
                generation.tokens += generation.truth[start : start + 3]
            ends.append(await scene.serve(address))
    assert ends == [LinkEnd.CLOSED, LinkEnd.LEFT]
    assert scene.coordinator.count(Resume) == 2
    assert scene.worker.stats.num_resumed == 2
    assert all(generation.tokens == generation.truth for generation in generations)


async def test_a_refused_lease_is_forgotten(autojump_clock: object) -> None:
    scene = Scene()
    scene.coordinator.add(1, num_new=200)
    async with scene.open() as address, trio.open_nursery() as nursery:
        with trio.fail_after(60):
            nursery.start_soon(_drop_later, scene, 0.5)
            await scene.serve(address)
            scene.coordinator.generations.clear()
            nursery.start_soon(_call_later, 1.0, scene.worker.leave)
            assert await scene.serve(address) is LinkEnd.LEFT
    assert scene.drafter.session_nos == ()


async def test_refusal_says_why(autojump_clock: object) -> None:
    scene = Scene()
    scene.coordinator.refusal = ("tokenizer", "the tokenizer does not fit demo-target")
    async with scene.open() as address:
        with pytest.raises(Refused, match="does not fit") as caught:
            await scene.serve(address)
    assert caught.value.code == "tokenizer"


async def test_pings_are_answered_and_silence_ends_the_link(autojump_clock: object) -> None:
    scene = Scene(heartbeat_s=2.0)
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(
            _call_later, 30.0, lambda: setattr(scene.coordinator, "is_pinging", False)
        )
        started = trio.current_time()
        assert await scene.serve(address) is LinkEnd.SILENT
    assert 30 < trio.current_time() - started < 38
    assert scene.coordinator.count(Pong) >= 13


async def test_a_half_open_peer_is_noticed_in_the_handshake(autojump_clock: object) -> None:
    scene = Scene()
    async with scene.open() as address:
        scene.network.stall(THERE.peer_id, HERE.peer_id)
        with trio.fail_after(20):
            assert await scene.serve(address) is LinkEnd.CLOSED


async def test_draining_finishes_what_is_open(autojump_clock: object) -> None:
    scene = Scene()
    generation = scene.coordinator.add(1)
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.until_done)
        nursery.start_soon(_call_later, 0.3, lambda: scene.coordinator.extra.append(Drain("bye")))
        nursery.start_soon(_call_later, 0.5, lambda: drained.append(scene.worker.desk.is_draining))
        drained: list[bool] = []
        assert await scene.serve(address) is LinkEnd.LEFT
    assert drained == [True]
    assert generation.tokens == generation.truth


async def test_a_session_that_does_not_fit_is_released(autojump_clock: object) -> None:
    scene = Scene(model=ToyModel(DRAFT, max_context=6))
    generation = scene.coordinator.add(1)
    await run_to_the_end(scene)
    assert scene.coordinator.count(Release) == 1
    assert generation.num_accepted == 0


class FailingModel(ToyModel):
    """Of which forwards fail as on a machine where somebody else has taken the memory."""

    num_forwards = 0
    failing: tuple[int, ...] | range = ()
    error: type[ModelError] = ModelError

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        self.num_forwards += 1
        if self.num_forwards in self.failing:
            raise self.error("no memory is left")
        return super().expand(batch, branch_width)


async def test_a_forward_that_fails_costs_its_sessions_and_not_the_node(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    model = FailingModel(DRAFT)
    model.failing = (6, 9)
    scene = Scene(model=model)
    generations = [scene.coordinator.add(number) for number in range(3)]
    async with scene.open() as address, trio.open_nursery() as nursery:
        for number in range(3, 6):
            nursery.start_soon(_call_later, 0.2 * number, partial(scene.coordinator.add, number))
        nursery.start_soon(_call_later, 2.0, scene.worker.leave)
        assert await scene.serve(address) is LinkEnd.LEFT
    generations = list(scene.coordinator.generations.values())
    assert len(generations) == 6
    assert scene.coordinator.count(Release) in range(2, 6)
    assert "no memory is left" in caplog.text
    assert all(generation.tokens == generation.truth for generation in generations)
    assert generations[-1].num_accepted > 0


@pytest.mark.parametrize("error", [ModelError, OutOfMemory])
async def test_a_model_that_fails_again_and_again_ends_the_link_until_it_runs(
    autojump_clock: object, error: type[ModelError]
) -> None:
    """Where memory is short a smaller forward is tried first, and one is found to fit."""
    model = FailingModel(DRAFT)
    model.failing, model.error = range(1, 5), error
    scene = Scene(model=model)
    async with scene.open() as address, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(_call_later, 0.2 * number, partial(scene.coordinator.add, number))
        assert await scene.serve(address) is LinkEnd.BROKEN
        assert model.num_forwards == 3
        if error is ModelError:
            assert await scene.serve(address) is LinkEnd.BROKEN  # the fourth
        nursery.start_soon(scene.until_done)
        assert await scene.serve(address) is LinkEnd.LEFT
    assert scene.coordinator.generations[(4).to_bytes(16, "big")].num_accepted > 0


async def test_wishes_change_on_the_way(autojump_clock: object) -> None:
    scene = Scene()
    scene.coordinator.add(1, num_new=30)
    wish = Tune(1, GrowthWishes(min_prob=0.5, look_ahead=1, max_unverified=300))
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.until_done)
        nursery.start_soon(_call_later, 0.15, lambda: scene.coordinator.extra.append(wish))
        assert await scene.serve(address) is LinkEnd.LEFT


async def test_a_coordinator_that_breaks_the_protocol_loses_the_link(
    autojump_clock: object,
) -> None:
    scene = Scene()

    async def babble(link: Link) -> None:
        await link.receive()
        await link.send(b"\xc1 not msgpack")
        await trio.sleep_forever()

    overlay = scene.network.join(THERE.peer_id)
    async with overlay.serve(DRAFT_PROTOCOL, babble):
        assert await scene.serve(overlay.addresses[0]) is LinkEnd.PROTOCOL


async def test_capacity_is_told(autojump_clock: object) -> None:
    scene = Scene()
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.serve, address)
        await trio.sleep(1)
        scene.worker.set_capacity(0)
        await trio.sleep(1)
        scene.worker.leave()
    kinds = [type(m).__name__ for _, m in scene.coordinator.received]
    assert "Capacity" in kinds


async def test_a_pause_while_hands_are_shaken_is_told(autojump_clock: object) -> None:
    scene = Scene()
    scene.coordinator.on_link = lambda: scene.worker.set_capacity(0)  # Welcome is on its way
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.serve, address)
        await trio.sleep(1)
        scene.worker.leave()
    assert [hello.max_sessions for hello in scene.coordinator.hellos] == [8]
    told = [m.max_sessions for _, m in scene.coordinator.received if isinstance(m, Capacity)]
    assert told == [0]


async def test_a_machine_that_has_become_slower_says_so_once(autojump_clock: object) -> None:
    scene = Scene(step_s=0.05)
    shape, busy = LevelShape(16, 1, 256), LevelShape(128, 8, 2048)
    scene.drafter.times.observe(shape, 0.004)
    scene.coordinator.add(1)
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.until_done)
        nursery.start_soon(scene.serve, address)
        await trio.sleep(0.1)
        for _ in range(60):
            scene.drafter.times.observe(shape, 0.012)
            scene.drafter.times.observe(busy, 0.019)
    (hello,) = scene.coordinator.hellos
    assert hello.level_time_s == pytest.approx(0.004, rel=0.05)
    (news,) = [m for _, m in scene.coordinator.received if isinstance(m, Capacity)]
    assert news.max_sessions == 8
    assert news.level_time_s == pytest.approx(0.012, rel=0.1)
    assert news.level_session_time_s > 0
    stats = scene.worker.stats
    assert stats.num_rows > stats.num_levels > 0
    assert 0 < stats.num_prefill_rows < stats.num_rows


async def test_law5_receipt_chain_is_kept_and_missing_ones_are_asked_for(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    receipts = receipt_chain(THERE, HERE.peer_id, 5)
    scene.coordinator.receipts = receipts[:2]
    forged = receipt_chain(Identity.generate(), HERE.peer_id, 3)[2]
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.serve, address)
        await trio.sleep(1)
        assert scene.book.last_sequence(THERE.peer_id) == 2  # asked for after Welcome
        with caplog.at_level(logging.ERROR):
            scene.coordinator.extra.append(Receipt(forged))
            await trio.sleep(1)
        assert "BAD RECEIPT" in caplog.text
        assert scene.book.last_sequence(THERE.peer_id) == 2
        scene.coordinator.receipts = receipts
        scene.coordinator.extra.append(Receipt(receipts[4]))  # 3 and 4 were lost on the way
        await trio.sleep(1)
        assert scene.book.last_sequence(THERE.peer_id) == 5
        assert scene.book.audit() == ()
        assert scene.worker.stats.num_receipts == 5
        assert scene.worker.stats.num_bad_receipts == 1
        scene.worker.leave()


async def test_law5_receipt_that_a_full_disk_refuses_is_asked_for_again(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    receipts = receipt_chain(THERE, HERE.peer_id, 40)
    async with scene.open() as address, trio.open_nursery() as nursery:
        nursery.start_soon(scene.serve, address)
        await trio.sleep(1)
        fill_disk(scene.book)
        scene.coordinator.receipts = receipts[:-1]
        scene.coordinator.extra.append(Receipt(receipts[-2]))
        with caplog.at_level(logging.ERROR):
            await trio.sleep(30)
        num_kept = scene.book.last_sequence(THERE.peer_id)
        assert num_kept < 39
        assert "make room on its disk" in caplog.text
        num_asked = scene.coordinator.count(ReceiptRequest)
        assert num_asked <= 3  # at the start, for the gap, and where that one broke off
        free_disk(scene.book)
        await trio.sleep(60)
        scene.coordinator.receipts = receipts
        scene.coordinator.extra.append(Receipt(receipts[-1]))
        await trio.sleep(1)
        assert scene.book.last_sequence(THERE.peer_id) == 40
        assert scene.book.audit() == ()
        scene.worker.leave()


async def test_a_book_that_cannot_be_read_stops_no_drafting(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    generation = scene.coordinator.add(1)
    scene.book._db.execute("DROP TABLE receipts")
    scene.coordinator.extra.append(Receipt(receipt_chain(THERE, HERE.peer_id, 1)[0]))
    with caplog.at_level(logging.ERROR):
        assert await run_to_the_end(scene) is LinkEnd.LEFT
    assert generation.is_done
    assert "no receipts are asked for" in caplog.text
    assert "was not kept" in caplog.text


async def test_law7_bounded_a_stalled_link_does_not_pile_up_frames(autojump_clock: object) -> None:
    """The coordinator stops reading: growth goes on, frames wait in a bounded queue."""
    scene = Scene(step_s=0.02, heartbeat_s=1000.0)
    scene.coordinator.add(1, num_new=400)

    async def deaf(link: Link) -> None:
        # Reads the first words, then nothing more, but keeps talking.
        scene.coordinator._read = _never  # type: ignore[assignment, method-assign]
        await scene.coordinator.handle(link)

    overlay = scene.network.join(THERE.peer_id)
    async with overlay.serve(DRAFT_PROTOCOL, deaf), trio.open_nursery() as nursery:
        nursery.start_soon(scene.until_done)
        with trio.fail_after(120):
            end = await scene.serve(overlay.addresses[0])
    assert end in (LinkEnd.LEFT, LinkEnd.STALLED)
    assert scene.worker.stats.num_committed == 400  # verdicts were read all the while


async def test_replayed_frames_cost_the_node_and_nobody_else(autojump_clock: object) -> None:
    scene = Scene()
    generation = scene.coordinator.add(1)
    async with scene.open() as address, scene.node.dial(address, DRAFT_PROTOCOL) as link:
        with trio.fail_after(60):
            assert await scene.worker.serve(ReplayLink(link)) is LinkEnd.CLOSED
    assert generation.tokens == generation.truth[: len(generation.tokens)]


def test_backoff_doubles_to_a_minute_and_jitter_shortens_it() -> None:
    assert [backoff_s(n, 0.0) for n in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_s(3, 0.5) == 6
    assert backoff_s(10_000, 0.0) == 60


async def _drop_later(scene: Scene, after_s: float) -> None:
    await trio.sleep(after_s)
    scene.network.drop_links(HERE.peer_id, THERE.peer_id)


async def _call_later(after_s: float, call: Callable[[], object]) -> None:
    await trio.sleep(after_s)
    call()


async def _never(*_: object) -> None:
    await trio.sleep_forever()
