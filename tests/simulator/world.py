"""A whole network in virtual time: an engine, a coordinator, nodes, and clients in a closed loop.

The engine's core, the drafters, the plan, the leases and the matching are the real ones. Language
models are replaced by recordings and devices by what their forwards take.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import StepDone
from coordinator.engine.settings import EngineLimits
from coordinator.policy import StepPolicy
from coordinator.scheduler.factors import Factors
from coordinator.scheduler.plan import FixedTree, PlanLimits
from coordinator.sessions import Committed, Session
from coordinator.settings import Lockstep
from specedge_p2p.names import PeerId
from tests.simulator.coordinator import SimCoordinator
from tests.simulator.engine import SimEngine
from tests.simulator.events import Agenda, LinkQuality
from tests.simulator.models import TraceDraft, TraceTarget, by_key
from tests.simulator.node import SimNode
from tests.simulator.profiles import ENGINES, EngineCosts, NodeCosts
from tests.simulator.results import Result, Tally
from tests.simulator.traces import Trace, TraceBook


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step brought to one session."""

    num_tokens: int
    num_rows: int
    num_source_rows: int


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node of a world."""

    costs: NodeCosts = field(default_factory=NodeCosts)
    quality: LinkQuality = field(default_factory=LinkQuality)
    draft: str = "small"
    max_sessions: int = 64


@dataclass(frozen=True, slots=True)
class WorldPlan:
    """What is simulated.

    Args:
        engine: costs of its device.
        nodes: who drafts.
        num_sessions: clients; each asks for the next recorded generation when one has ended.
        temperature: of all of them; must have been recorded.
        has_ngram: the engine's own guesses from the text.
        max_batch: most sessions in one step, 0 for all.
        engine_draft: the engine's own draft model, one of the recorded ones; "" for none.
        tree: the tree that it drafts whatever it brings; None lets the costs decide.
        lockstep: rounds in lock-step instead of continuous drafting.
        num_tokens: committed tokens after which the run ends, when nothing below says otherwise.
        max_s: or after so many simulated seconds.
        num_generations: or when the first so many have ended, 0 for no such end; worlds of the same
            seed have the same prompts in these.
        warm_up: share of the tokens before which nothing is counted.
        is_prefill_free: prompts cost neither the engine's time nor a place.
        seed: of everything that is drawn.
    """

    engine: EngineCosts = ENGINES["h200-14b"]
    nodes: tuple[NodePlan, ...] = ()
    num_sessions: int = 8
    temperature: float = 0.7
    has_ngram: bool = True
    max_batch: int = 0
    engine_draft: str = ""
    tree: FixedTree | None = None
    lockstep: Lockstep | None = None
    num_tokens: int = 6000
    max_s: float = math.inf
    num_generations: int = 0
    warm_up: float = 0.1
    is_prefill_free: bool = True
    seed: int = 1
    max_rows: int = 32


class World:
    """Built of a plan; `run` simulates it once."""

    def __init__(self, plan: WorldPlan, book: TraceBook) -> None:
        self.plan = plan
        self._book = book
        self._traces = book.at(plan.temperature)
        self._by_key = by_key(self._traces)
        self._prompts = self._endless_prompts()
        self.agenda = Agenda()
        self.random = Random(plan.seed)
        self.num_committed = 0
        self.finished: set[int] = set()
        """Sessions that have ended; those of the plan's `num_generations`, where it has some."""
        self.place_s: defaultdict[int, float] = defaultdict(float)
        """By session, its share of all its steps: of each as much as one place of a full house."""
        self.num_finished = 0
        self.num_breaks = 0
        self.wrong: list[int] = []
        """Sessions that did not get the recorded tokens."""
        self.trails: dict[int, list[Outcome]] = {}
        """By session, what each of its steps brought."""
        self._by_number: dict[int, Trace] = {}
        self._num_proposed_before = 0
        self.tally = Tally(plan.max_batch or plan.num_sessions)
        self.coordinator = self._build_coordinator()
        self.nodes = [self._build_node(i, node) for i, node in enumerate(plan.nodes)]

    def run(self) -> Result:
        """Simulate until the plan's tokens are committed."""
        for _ in range(self.plan.num_sessions):
            self._open_next()
        self.coordinator.join(*self.nodes)
        for node, plan in zip(self.nodes, self.plan.nodes, strict=True):
            if plan.quality.churn_s:
                self._break_later(node, plan.quality)
        self.coordinator.pump()
        self.agenda.run(self._is_over)
        num_proposed = self.coordinator.num_proposed - self._num_proposed_before
        return self.tally.result(self.agenda.now, num_proposed)

    # --- building --------------------------------------------------------------------------------

    def _build_coordinator(self) -> SimCoordinator:
        plan = self.plan
        limits = PlanLimits(
            max_rows=max(plan.max_rows, plan.lockstep.vertices if plan.lockstep else 0),
            has_ngram=plan.has_ngram,
            prefill_tokens=4096,
            prefill_share=1000.0 if plan.is_prefill_free else 0.5,
            max_batch=plan.max_batch,
            tree=plan.tree,
        )
        factors = Factors()
        coordinator = SimCoordinator(
            self.agenda,
            StepPolicy(limits, lambda: self.agenda.now, factors),
            factors,
            self._book.vocab_size,
            self._on_commit,
            self._on_step,
            self._on_end,
            plan.lockstep,
        )
        core = EngineCore(
            TraceTarget(self._by_key, self._book.vocab_size, "recorded"),
            lambda: self.agenda.now,
            EngineLimits(max_sessions=4 * plan.num_sessions, max_draft_prefill_rows=4096),
            draft=self._draft(plan.engine_draft) if plan.engine_draft else None,
        )
        engine = SimEngine(
            core,
            self.agenda,
            plan.engine,
            coordinator.hear,
            is_prefill_free=plan.is_prefill_free,
            is_drafting=bool(plan.engine_draft),
        )
        coordinator.start(engine)
        return coordinator

    def _build_node(self, number: int, plan: NodePlan) -> SimNode:
        return SimNode(
            peer_id=PeerId(f"node-{number:05}"),
            model=self._draft(plan.draft),
            agenda=self.agenda,
            costs=plan.costs,
            quality=plan.quality,
            random=Random(self.random.random()),
            propose=self.coordinator.propose,
            max_sessions=plan.max_sessions,
        )

    def _draft(self, name: str) -> TraceDraft:
        return TraceDraft(self._by_key, self._book.vocab_size, name)

    def _endless_prompts(self) -> Iterator[Trace]:
        """All traces in turn, in an order of the seed that is another one each time."""
        order = list(self._traces)
        random = Random(self.plan.seed)
        for _ in count():
            random.shuffle(order)
            yield from order

    # --- what happens ----------------------------------------------------------------------------

    def _open_next(self) -> None:
        trace = next(self._prompts)
        session = self.coordinator.open(trace, volunteers=bool(self.plan.nodes))
        self._by_number[session.number] = trace

    def _on_commit(self, session: Session, committed: Committed) -> None:
        self.num_committed += len(committed.token_ids)
        self.tally.commit(session, committed, self.agenda.now)
        if not self.tally.is_open and self.num_committed >= self._num_warm_up:
            self.tally.begin(self.agenda.now)
            self._num_proposed_before = self.coordinator.num_proposed

    def _is_over(self) -> bool:
        plan = self.plan
        if plan.num_generations:
            return len(self.finished) >= plan.num_generations
        return self.num_committed >= plan.num_tokens or self.agenda.now >= plan.max_s

    @property
    def _num_warm_up(self) -> float:
        return self.plan.warm_up * self.plan.num_tokens

    def _on_step(self, step: StepDone) -> None:
        engine = self.coordinator.engine
        decoded = [result for result in step.results if engine.is_decoded(result)]
        self.tally.step(step, decoded)
        for result in decoded:
            outcome = Outcome(len(result.token_ids), result.num_rows, result.num_source_rows)
            self.trails.setdefault(result.session, []).append(outcome)
            self.place_s[result.session] += (step.ended_s - step.started_s) / self.tally.num_places

    def _on_end(self, session: Session) -> None:
        trace = self._by_number.pop(session.number)
        self.num_finished += 1
        if not self.plan.num_generations or session.number <= self.plan.num_generations:
            self.finished.add(session.number)
        if tuple(session.token_ids) != trace.tokens:
            self.wrong.append(session.number)
        self._open_next()

    def _break_later(self, node: SimNode, quality: LinkQuality) -> None:
        def come_back() -> None:
            self.coordinator.join(node)
            self._break_later(node, quality)

        def go() -> None:
            self.coordinator.leave(node)
            self.num_breaks += 1
            self.agenda.after(self.random.expovariate(1.0 / quality.away_s), come_back)

        self.agenda.after(self.random.expovariate(1.0 / quality.churn_s), go)
