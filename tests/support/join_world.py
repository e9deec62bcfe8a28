"""A node's join loop inside a network of memory, with coordinators that do as they are told."""

import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from node.drafter import LevelDone
from node.hardware import Benchmark, LevelTime
from node.join import Draft, JoinLoop, JoinPorts
from node.link_life import Refused
from node.receipts import ReceiptBook
from node.selection import NoFit
from node.settings import NodeSettings
from node.worker import run_io_inline
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.record import CoordinatorRecord
from specedge_p2p.lm.ports import ModelError
from specedge_p2p.lm.toy import ToyModel, ToyParams
from specedge_p2p.overlay.discovery import FoundCoordinator
from specedge_p2p.overlay.memory import MemoryNetwork, address_of
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL
from tests.support.scripted_coordinator import ScriptedCoordinator

HERE, THERE, ELSEWHERE = (Identity.generate() for _ in range(3))
FINGERPRINT, FOREIGN = b"t" * 16, b"x" * 16


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


def by_hand(folder: Path, *given: Identity, draft: str = "auto") -> NodeSettings:
    """Memory addresses are no multiaddresses, which real settings insist on."""
    settings = NodeSettings(folder, draft_models=(draft,))
    addresses = tuple(address_of(identity.peer_id) for identity in given or (THERE,))
    object.__setattr__(settings, "coordinators", addresses)
    return settings


class World:
    """A network, coordinators, and a join loop whose parts are all inside this process.

    Args:
        settings: of the node.
        tokenizers: of draft models that have another than FINGERPRINT.
        broken: draft models that cannot be loaded.
        is_freezing: what is loaded is frozen, as a real node does.
    """

    def __init__(
        self,
        settings: NodeSettings,
        tokenizers: dict[str, bytes] | None = None,
        broken: Sequence[str] = (),
        *,
        is_freezing: bool = False,
    ) -> None:
        self.network = MemoryNetwork()
        self.coordinator = ScriptedCoordinator(THERE)
        self.other = ScriptedCoordinator(ELSEWHERE)
        self.book = ReceiptBook(None, HERE.peer_id)
        self.prepared: list[str] = []
        self.alive: weakref.WeakSet[ToyModel] = weakref.WeakSet()
        self.most_alive = 0
        self.asked: list[float] = []
        self.found: list[FoundCoordinator] = [found()]
        self._tokenizers, self._broken = tokenizers or {}, broken
        self._is_freezing = is_freezing
        ports = JoinPorts(
            overlay=self.network.join(HERE.peer_id),
            find=self._find,
            prepare=self._prepare,
            receipts=self.book,
            jitter=lambda: 0.0,
            run_level=_run_level,
            run_io=run_io_inline,
        )
        self.loop = JoinLoop(settings, ports, "test")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Both coordinators answer."""
        async with AsyncExitStack() as stack:
            for each in (self.coordinator, self.other):
                overlay = self.network.join(each.identity.peer_id)
                await stack.enter_async_context(overlay.serve(DRAFT_PROTOCOL, each.handle))
            yield

    async def run(self, for_s: float) -> Exception | None:
        """What ends the loop within this time, bare of its groups."""
        problem: Exception | None = None
        async with self.serving():
            with trio.move_on_after(for_s):
                try:
                    await self.loop.run()
                except (NoFit, Refused, ModelError) as error:
                    problem = error
        return problem

    async def _find(self) -> list[FoundCoordinator]:
        self.asked.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        return self.found

    async def _prepare(self, name: str) -> Draft:
        self.prepared.append(name)
        await trio.sleep(1)
        if name in self._broken:
            raise ModelError(f"no model {name!r}")
        model = ToyModel(ToyParams(eos_bias=-60.0, perturbation=0.5))
        self.alive.add(model)
        self.most_alive = max(self.most_alive, len(self.alive))
        if self._is_freezing:
            gc.freeze()
        return Draft(
            name,
            model,
            self._tokenizers.get(name, FINGERPRINT),
            Benchmark((LevelTime(4, 0.004), LevelTime(16, 0.004))),
        )


async def _run_level(level: Callable[[], LevelDone]) -> LevelDone:
    await trio.sleep(0.004)
    return level()
