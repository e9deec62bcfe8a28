"""A whole coordinator and its nodes in one process and in virtual time, on recorded models.

All that a coordinator and a node are made of is real but the models, which know a recording by
heart, the links, which are queues, and the time of a forward, which is slept on trio's clock. So
what the coordinator's own work costs can be told task by task, on a machine that could never run
so many devices at once.
"""

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, pairwise

import trio
import trio.testing

from coordinator.assembly import Coordinator, Parts
from coordinator.engine.core import EngineCore
from coordinator.engine.inline import InlineEngine
from coordinator.engine.settings import EngineLimits
from coordinator.gateway.ports import FinishEvent, GenerationRequest, TextEvent
from coordinator.ledger.memory import MemoryLedger
from coordinator.settings import Limits
from node.drafter import Drafter, LevelDone
from node.receipts import ReceiptBook
from node.worker import Worker, WorkerSettings, run_io_inline
from specedge_p2p.identity.keys import Identity
from specedge_p2p.lm.text import Tokenizer
from specedge_p2p.overlay.memory import MemoryNetwork, address_of
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL, OverlayError
from tests.simulator.models import TraceDraft, TraceTarget, by_key
from tests.simulator.node import known_times
from tests.simulator.profiles import ENGINES, EngineCosts
from tests.simulator.traces import Trace, TraceBook
from tests.simulator.world import NodePlan

TARGET = "demo-target"
TEMPERATURE = 0.7
REDIAL_S = 0.1


@dataclass(frozen=True, slots=True)
class SwarmPlan:
    """What is run.

    Args:
        engine: what its forwards take.
        nodes: who drafts; they stay until they are killed.
        limits: of the coordinator.
    """

    engine: EngineCosts = ENGINES["h200-14b"]
    nodes: tuple[NodePlan, ...] = ()
    limits: Limits = Limits(max_sessions=4096, holdout_rate=0.0)


@dataclass(slots=True)
class Burst:
    """Tokens that a stream brought at once."""

    at_s: float
    num_tokens: int


@dataclass(slots=True)
class Stream:
    """One request as its client saw it, in virtual seconds."""

    begun_s: float
    bursts: list[Burst] = field(default_factory=list)
    session_id: str = ""

    @property
    def gaps_s(self) -> list[float]:
        times = [burst.at_s for burst in self.bursts]
        return [after - before for before, after in pairwise(times)]


class TaskMeter(trio.abc.Instrument):
    """Processor time of every task, by its name."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = defaultdict(float)
        self._begun_s = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._begun_s = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.cpu_s[task.name] += time.thread_time() - self._begun_s


class RecordedSwarm:
    """See the head of this file."""

    def __init__(self, plan: SwarmPlan, book: TraceBook) -> None:
        self.plan = plan
        self._book, self._traces = book, book.at(TEMPERATURE)
        self._by_key = by_key(self._traces)
        self._prompts = cycle(self._traces)
        self._codec = Tokenizer.load(TARGET)
        self._me = _identity(1_000_000)
        self._network = MemoryNetwork(latency_s=0.0)
        self.engine = InlineEngine(self._make_core, self._step_cost)
        self.coordinator = Coordinator(
            Parts(
                engine=self.engine,
                overlay=self._network.join(self._me.peer_id),
                ledger=MemoryLedger(self._me, trio.current_time),
                codec=self._codec,
                model=TARGET,
                clock=trio.current_time,
                limits=plan.limits,
            )
        )

    def kill(self, number: int) -> None:
        """A node dies without a word."""
        self._network.kill(_identity(number).peer_id)

    async def run_node(self, number: int, plan: NodePlan) -> None:
        """Join and draft until cancelled or killed."""
        me = _identity(number)
        overlay = self._network.join(me.peer_id)
        for ends in ((me.peer_id, self._me.peer_id), (self._me.peer_id, me.peer_id)):
            self._network.set_latency(*ends, plan.quality.round_trip_s / 2)
        model = TraceDraft(self._by_key, self._book.vocab_size, plan.draft)

        async def run_level(level: Callable[[], LevelDone]) -> LevelDone:
            done = level()
            await trio.sleep(plan.costs.level_s + plan.costs.level_row_s * done.num_rows)
            return done

        settings = WorkerSettings(
            draft_model=plan.draft,
            model_fingerprint=plan.draft.encode(),
            tokenizer_fingerprint=self._codec.fingerprint(),
            max_sessions=plan.max_sessions,
            level_time_s=plan.costs.level_s,
        )
        worker = Worker(
            Drafter(model, times=known_times(plan.costs)),
            settings,
            ReceiptBook(None, me.peer_id),
            run_level,
            run_io_inline,
        )
        try:
            async with overlay.dial(address_of(self._me.peer_id), DRAFT_PROTOCOL) as link:
                await worker.serve(link)
        except OverlayError:
            pass  # the tests of a node that comes back are elsewhere
        finally:
            self._network.kill(me.peer_id)

    async def stream(self, trace: Trace | None = None) -> Stream:
        """One request, read to its end."""
        trace = trace or next(self._prompts)
        stream = Stream(trio.current_time())
        request = GenerationRequest(
            model=TARGET,
            prompt_ids=trace.prompt_ids,
            sampling=trace.sampling,
            seed=trace.seed,
            max_tokens=trace.num_new,
            ignore_eos=True,
        )
        async with self.coordinator.generations.generate(request) as events:
            async for event in events:
                match event:
                    case TextEvent(_, tokens):
                        stream.bursts.append(Burst(trio.current_time(), len(tokens)))
                    case FinishEvent(_, stats):
                        stream.session_id = stats.session_id
        return stream

    async def keep_busy(self, num_sessions: int, nursery: trio.Nursery) -> None:
        """So many clients, each of which asks again when it has its answer."""

        async def client() -> None:
            while True:
                await self.stream()

        for _ in range(num_sessions):
            nursery.start_soon(client)
        await trio.lowlevel.checkpoint()

    async def until_step(self, number: int) -> None:
        """Wait until the engine has run so many steps."""
        while self.coordinator.load.num_steps < number:  # noqa: ASYNC110 - virtual time
            await trio.sleep(self.plan.engine.step_s)

    def _make_core(self) -> EngineCore:
        target = TraceTarget(self._by_key, self._book.vocab_size, TARGET)
        limits = EngineLimits(max_sessions=self.plan.limits.max_sessions)
        return EngineCore(target, trio.current_time, limits)

    def _step_cost(self, num_rows: int, _num_sequences: int) -> float:
        return self.plan.engine.step_time_s(num_rows)


@asynccontextmanager
async def running(plan: SwarmPlan, book: TraceBook) -> AsyncIterator[RecordedSwarm]:
    """A swarm whose nodes, numbered from 1, have joined."""
    swarm = RecordedSwarm(plan, book)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(swarm.engine.run)
        await nursery.start(swarm.coordinator.run)
        for number, node in enumerate(plan.nodes, 1):
            nursery.start_soon(partial(swarm.run_node, number, node))
        while len(swarm.coordinator.leases.nodes) < len(plan.nodes):  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.01)
        yield swarm
        nursery.cancel_scope.cancel()


def in_virtual_time(run: Callable[[], object], *instruments: trio.abc.Instrument) -> object:
    """Run an async function on a clock that jumps."""
    clock = trio.testing.MockClock(rate=0.0, autojump_threshold=0.0)
    return trio.run(run, clock=clock, instruments=list(instruments))  # type: ignore[arg-type]


def _identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "little"))


__all__ = ["RecordedSwarm", "Stream", "SwarmPlan", "TaskMeter", "in_virtual_time", "running"]
