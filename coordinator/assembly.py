"""The coordinator put together from its parts, whatever they run on.

`main.py` gives it real ones (a process, a database, libp2p); a test gives it fakes and runs the
whole swarm in virtual time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import trio

from coordinator.accounting import Accounting
from coordinator.engine.messages import Ready
from coordinator.engine.ports import Engine
from coordinator.gateway.ports import ModelCard
from coordinator.generations import LiveGenerations
from coordinator.intake import Intake, TargetProfile
from coordinator.leases import Leases
from coordinator.ledger.ports import Ledger, SignedReceipt
from coordinator.load import Load
from coordinator.lockstep import make_gate
from coordinator.policy import StepPolicy
from coordinator.rounds import Rounds
from coordinator.samples import SampleMaker, SampleTarget
from coordinator.scheduler.factors import Factors
from coordinator.scheduler.plan import PlanLimits
from coordinator.sessions import Sessions
from coordinator.settings import Limits, Timing
from coordinator.status import Status
from coordinator.target_text import TextCodec
from coordinator.trial import Trial
from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL, Overlay
from specedge_p2p.overlay.sample import serve_sample
from specedge_p2p.tasks import TaskStatus

TELL_S = 1.0
"""How long nodes are given to take their last messages; they can ask for receipts later."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a coordinator stands on."""

    engine: Engine
    overlay: Overlay
    ledger: Ledger
    codec: TextCodec
    model: str
    clock: Callable[[], float]
    """Monotonic seconds."""
    software: str = "specedge-p2p"
    allowed_nodes: frozenset[PeerId] = frozenset()
    limits: Limits = Limits()
    timing: Timing = Timing()
    uniform: Callable[[], float] = SystemRandom().random
    """Random numbers in [0, 1), to choose sessions that are measured without volunteers."""
    sample_file: Path | None = None
    """Where the sample for choosing draft models is kept; None makes it anew every time."""


class Coordinator:
    """Owns target model, sessions and accounting; see `rounds.py` for its heart."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._ready: Ready | None = None
        self._was_ready = trio.Event()
        limits, timing, clock = parts.limits, parts.timing, parts.clock
        self.sessions = Sessions(limits.max_sessions)
        self.load = Load(clock)
        factors, lockstep = Factors(), limits.lockstep
        policy = StepPolicy(
            PlanLimits(
                max_rows=max(limits.max_rows, 0 if lockstep is None else lockstep.vertices),
                max_sessions=limits.max_sessions,
                prefill_tokens=limits.prefill_tokens,
                has_ngram=limits.has_ngram,
                max_batch=limits.max_batch,
                tree=limits.engine_tree,
            ),
            clock,
            factors,
        )
        wishes = limits.wishes if lockstep is None else lockstep.wishes
        self.leases = Leases(
            self.sessions, parts.allowed_nodes, clock, timing.lease_s, wishes, factors
        )
        self.accounting = Accounting(parts.ledger, self._deliver)
        self.rounds = Rounds(
            parts.engine,
            self.sessions,
            self.leases,
            self.accounting,
            policy,
            self.load,
            self._on_ready,
            make_gate(lockstep),
            clock,
        )
        self.intake = Intake(
            parts.engine,
            self.leases,
            parts.ledger,
            self._target,
            limits,
            timing,
            clock,
            parts.software,
            self.rounds.proposed,
        )
        self.generations = LiveGenerations(
            self.rounds,
            self.sessions,
            parts.codec,
            Trial(self.leases, parts.allowed_nodes, limits.holdout_rate, parts.uniform),
            self._model_card,
            clock,
        )
        self.samples = SampleMaker(
            self.generations, self.sessions, self._sample_of, parts.sample_file
        )
        self.status = Status(
            parts.overlay,
            parts.engine,
            self.sessions,
            self.leases,
            self.load,
            policy,
            limits,
            parts.model,
            clock,
        )

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve nodes and sessions for ever; started when the engine is ready.

        Raises EngineError when the engine cannot be started or brought back.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.rounds.run)
                await self._was_ready.wait()
                nursery.start_soon(self.accounting.run, self._parts.timing.segment_s)
                nursery.start_soon(self.samples.run)
                overlay = self._parts.overlay
                async with (
                    serve_sample(overlay, self.samples.current),
                    overlay.serve(DRAFT_PROTOCOL, self.intake.serve),
                ):
                    task_status.started(None)
                    await trio.sleep_forever()
        finally:
            # However it ends, what the nodes earned in the last second is written.
            with trio.CancelScope(shield=True):
                await self.accounting.flush()

    async def drain(self, reason: str) -> None:
        """End what is live, say so to the nodes, and write what was accepted to the ledger."""
        self.generations.stop(reason)
        self.intake.drain(reason)
        await self.accounting.flush()
        with trio.move_on_after(TELL_S):
            await self.intake.until_told()

    @property
    def share_taken(self) -> float:
        """How full the coordinator is, 0 to 1."""
        return min(1.0, len(self.sessions) / self._parts.limits.max_sessions)

    @property
    def tokenizer_fingerprint(self) -> bytes:
        return self._parts.codec.fingerprint()

    def _deliver(self, receipt: SignedReceipt) -> None:
        self.intake.deliver(receipt)

    def _on_ready(self, ready: Ready) -> None:
        self._ready = ready
        self.leases.calibrate(ready.step_time_s, ready.max_context)
        self._was_ready.set()

    def _target(self) -> TargetProfile | None:
        if self._ready is None:
            return None
        return TargetProfile(
            name=self._parts.model,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            vocab_size=self._ready.vocab_size,
            max_context=self._ready.max_context,
        )

    def _sample_of(self) -> SampleTarget | None:
        if self._ready is None:
            return None
        return SampleTarget(
            name=self._parts.model,
            fingerprint=self._ready.fingerprint,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            vocab_size=self._ready.vocab_size,
            step_time_s=self.leases.step_time_s,
        )

    def _model_card(self) -> ModelCard | None:
        if self._ready is None:
            return None
        return ModelCard(
            id=self._parts.model,
            created=0,
            max_context=self._ready.max_context,
            vocab_size=self._ready.vocab_size,
        )
