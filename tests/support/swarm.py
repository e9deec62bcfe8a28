"""The whole network in one process, on fakes, in virtual time."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from coordinator.assembly import Coordinator, Parts
from coordinator.engine.core import EngineCore
from coordinator.engine.inline import InlineEngine
from coordinator.engine.settings import EngineLimits
from coordinator.gateway.ports import (
    FinishEvent,
    GenerationRequest,
    GenerationStats,
    Refused,
    TextEvent,
    Volunteers,
)
from coordinator.ledger.memory import MemoryLedger
from coordinator.settings import Limits
from node.drafter import Drafter, DrafterSettings, LevelDone
from node.receipts import ReceiptBook
from node.worker import Worker, WorkerSettings, run_io_inline
from specedge_p2p.identity.keys import Identity
from specedge_p2p.lm.ports import LanguageModel, SamplingParams
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from specedge_p2p.lm.toy_text import ToyText
from specedge_p2p.names import PeerId
from specedge_p2p.noise import noise_key, seed_bytes
from specedge_p2p.overlay.memory import MemoryNetwork, address_of
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL, OverlayError

MODEL = "toy-target"
VOCAB = 32
ENDLESS = ToyParams(VOCAB, eos_bias=-100.0)
"""A target that never ends by itself."""


def identity(number: int) -> Identity:
    """The same identity for the same number, so that runs repeat."""
    return Identity(number.to_bytes(32, "little"))


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    step_time_s: float = 0.040
    row_time_s: float = 0.0001
    level_time_s: float = 0.006
    latency_s: float = 0.0075
    jitter_s: float = 0.0
    seed: int = 0
    allowed: frozenset[PeerId] = frozenset()
    limits: Limits = Limits()
    engine_limits: EngineLimits | None = None
    max_context: int = 4096
    """Of the target model, as the next two."""
    cache_rows: int = 1 << 20
    page_rows: int = 1
    node_sessions: int = 8
    """Sessions that a node takes."""
    engine_draft: ToyParams | None = None
    """The engine's own draft model."""
    engine_level_time_s: float = 0.008


@dataclass(slots=True)
class Generated:
    """What a client got."""

    token_ids: list[int] = field(default_factory=list)
    guessed_by: list[str] = field(default_factory=list)
    text: str = ""
    reason: str = ""
    stats: GenerationStats | None = None
    first_token_s: float = 0.0
    finished_s: float = 0.0


class Swarm:
    """A coordinator on the toy model and the nodes that join it."""

    def __init__(self, settings: SwarmSettings, target: ToyParams) -> None:
        self.settings, self.target = settings, target
        self.network = MemoryNetwork(
            latency_s=settings.latency_s, jitter_s=settings.jitter_s, seed=settings.seed
        )
        self.identity = identity(1_000_000)
        self.ledger = MemoryLedger(self.identity, trio.current_time)
        self.core: EngineCore | None = None
        """Of the engine's present life."""
        has_draft = settings.engine_draft is not None
        self.engine = InlineEngine(
            self._core, self._step_cost, self._level_cost if has_draft else None
        )
        self.coordinator = Coordinator(
            Parts(
                engine=self.engine,
                overlay=self.network.join(self.identity.peer_id),
                ledger=self.ledger,
                codec=ToyText(VOCAB),
                model=MODEL,
                clock=trio.current_time,
                allowed_nodes=settings.allowed,
                limits=settings.limits,
            )
        )
        self.workers: dict[int, Worker] = {}
        self.books: dict[int, ReceiptBook] = {}
        self.level_times_s: dict[int, float] = {}
        """Of nodes that are not what they said."""

    def _core(self) -> EngineCore:
        settings, params = self.settings, self.settings.engine_draft
        self.core = EngineCore(
            ToyModel(
                self.target,
                name=MODEL,
                max_context=settings.max_context,
                cache_rows=settings.cache_rows,
                page_rows=settings.page_rows,
            ),
            trio.current_time,
            settings.engine_limits,
            None if params is None else ToyModel(params, name="toy-draft"),
        )
        return self.core

    def _level_cost(self, num_rows: float) -> float:
        return self.settings.engine_level_time_s + num_rows * self.settings.row_time_s

    def _step_cost(self, num_rows: int, _num_sequences: int) -> float:
        return self.settings.step_time_s + num_rows * self.settings.row_time_s

    async def run_node(
        self,
        number: int,
        model: LanguageModel,
        growth: DrafterSettings | None = None,
        fingerprint: bytes = bytes(16),
    ) -> None:
        """Join and come back after every lost link, until cancelled."""
        me = identity(number)
        overlay = self.network.join(me.peer_id)
        self.books[number] = ReceiptBook(None, me.peer_id)
        worker = self.workers[number] = Worker(
            Drafter(model, growth),
            WorkerSettings(
                draft_model="toy-draft",
                model_fingerprint=fingerprint,
                tokenizer_fingerprint=ToyText(VOCAB).fingerprint(),
                max_sessions=self.settings.node_sessions,
                level_time_s=self.settings.level_time_s,
            ),
            self.books[number],
            partial(self._run_level, number),
            run_io_inline,
        )
        try:
            while True:
                try:
                    address = address_of(self.identity.peer_id)
                    async with overlay.dial(address, DRAFT_PROTOCOL) as link:
                        await worker.serve(link)
                except OverlayError:
                    pass
                await trio.sleep(0.1)
        finally:
            self.network.kill(me.peer_id)

    async def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 16,
        temperature: float = 0.8,
        seed: int = 0,
        volunteers: Volunteers = "any",
        stop: tuple[str, ...] = (),
    ) -> Generated:
        got = Generated()
        started_s = trio.current_time()
        async with self.coordinator.generations.generate(
            request(prompt, max_tokens, temperature, seed, volunteers, stop)
        ) as events:
            async for event in events:
                match event:
                    case TextEvent(text, tokens):
                        if not got.token_ids:
                            got.first_token_s = trio.current_time() - started_s
                        got.text += text
                        got.token_ids += [token.token_id for token in tokens]
                        got.guessed_by += [token.guessed_by for token in tokens]
                    case FinishEvent(reason, stats):
                        got.reason, got.stats = reason, stats
        got.finished_s = trio.current_time() - started_s
        return got

    def expected(
        self, prompt: str, *, max_tokens: int = 16, temperature: float = 0.8, seed: int = 0
    ) -> list[int]:
        """What the target alone says."""
        prompt_ids = ToyText(VOCAB).encode(prompt)
        key = noise_key(seed_bytes(seed), prompt_ids)
        sampling = SamplingParams(temperature)
        return toy_decode(self.target, prompt_ids, sampling, key, max_tokens)

    async def _run_level(self, number: int, level: Callable[[], LevelDone]) -> LevelDone:
        done = level()
        await trio.sleep(self.level_times_s.get(number, self.settings.level_time_s))
        return done


def request(
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    volunteers: Volunteers = "any",
    stop: tuple[str, ...] = (),
) -> GenerationRequest:
    return GenerationRequest(
        model=MODEL,
        prompt_ids=tuple(ToyText(VOCAB).encode(prompt)),
        sampling=SamplingParams(temperature),
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
        volunteers=volunteers,
    )


@asynccontextmanager
async def running_swarm(
    settings: SwarmSettings | None = None,
    drafts: Sequence[LanguageModel] = (),
    target: ToyParams | None = None,
) -> AsyncIterator[Swarm]:
    """A swarm with one node per draft model, numbered from 1, all of them connected."""
    swarm = Swarm(settings or SwarmSettings(), target or ToyParams(vocab_size=VOCAB))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(swarm.engine.run)
        await nursery.start(swarm.coordinator.run)
        for number, model in enumerate(drafts, 1):
            nursery.start_soon(partial(swarm.run_node, number, model))
        while len(swarm.coordinator.leases.nodes) < len(drafts):  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.01)
        yield swarm
        nursery.cancel_scope.cancel()


__all__ = ["Generated", "Refused", "Swarm", "SwarmSettings", "identity", "request", "running_swarm"]
