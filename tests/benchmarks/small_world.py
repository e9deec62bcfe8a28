"""A simulated network that is put together by hand: who comes when, and which part is switched off.

Engine core, policy, leases, matching and drafters are the real ones, as in `tests/simulator`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import StepDone
from coordinator.engine.settings import EngineLimits
from coordinator.policy import StepPolicy
from coordinator.scheduler.factors import Factors
from coordinator.scheduler.plan import PlanLimits
from coordinator.sessions import Committed, Session
from node.drafter import DrafterSettings
from specedge_p2p.names import PeerId
from specedge_p2p.wire.messages import Proposal, Welcome
from tests.simulator.coordinator import SimCoordinator
from tests.simulator.engine import SimEngine
from tests.simulator.events import Agenda
from tests.simulator.models import TraceDraft, TraceTarget, by_key
from tests.simulator.node import SimNode, WiredLink
from tests.simulator.profiles import EngineCosts
from tests.simulator.traces import Trace
from tests.simulator.world import NodePlan

VOCAB_SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class Commit:
    at_s: float
    num_tokens: int


class SilentNode(SimNode):
    """A node that nobody knows the speed of: all such nodes look alike."""

    def connect(self, welcome: Welcome) -> WiredLink:
        link = super().connect(welcome)
        link.level_time_s, link.level_session_time_s = 0.01, 0.0
        return link


class SmallWorld:
    """Sessions and nodes are added before `run`.

    Args:
        engine: what steps take.
        limits: of the plan.
        traces: all that is ever asked for.
    """

    def __init__(self, engine: EngineCosts, limits: PlanLimits, traces: Sequence[Trace]) -> None:
        self.agenda = Agenda()
        self._by_key = by_key(traces)
        factors = Factors()
        self.coordinator = SimCoordinator(
            self.agenda,
            StepPolicy(limits, lambda: self.agenda.now, factors),
            factors,
            VOCAB_SIZE,
            self._on_commit,
            self._on_step,
            self._on_end,
        )
        core = EngineCore(
            TraceTarget(self._by_key, VOCAB_SIZE, "recorded"),
            lambda: self.agenda.now,
            EngineLimits(max_sessions=4096),
        )
        self.coordinator.start(
            SimEngine(
                core,
                self.agenda,
                engine,
                self.coordinator.hear,
                is_prefill_free=False,
                is_drafting=False,
            )
        )
        self.nodes: list[SimNode] = []
        self.commits: dict[int, list[Commit]] = defaultdict(list)
        self.opened_s: dict[int, float] = {}
        self.ended_s: dict[int, float] = {}
        self.steps_s: list[float] = []
        self.source_rows: dict[int, list[int]] = defaultdict(list)
        """By session: rows of nodes in each of its steps."""
        self.num_accepted = 0
        self.frozen: set[PeerId] = set()
        """Nodes that nothing is heard of any more, though their links stand."""
        self._again: dict[int, Trace] = {}

    def add_node(
        self, plan: NodePlan, *, is_silent: bool = False, settings: DrafterSettings | None = None
    ) -> SimNode:
        """A node; `join` connects them."""
        node = (SilentNode if is_silent else SimNode)(
            peer_id=PeerId(f"node-{len(self.nodes):03}"),
            model=TraceDraft(self._by_key, VOCAB_SIZE, plan.draft),
            agenda=self.agenda,
            costs=plan.costs,
            quality=plan.quality,
            random=Random(len(self.nodes)),
            propose=self._propose,
            max_sessions=plan.max_sessions,
            settings=settings,
        )
        self.nodes.append(node)
        return node

    def join(self) -> None:
        self.coordinator.join(*self.nodes)

    def open(self, trace: Trace, *, has_nodes: bool = False, again: bool = False) -> int:
        """A request, now; `again`: its client asks the same whenever it has its answer."""
        session = self.coordinator.open(trace, has_nodes)
        self.opened_s[session.number] = self.agenda.now
        if again:
            self._again[session.number] = trace
        self.coordinator.pump()
        return session.number

    def run(self, until_s: float) -> None:
        self.agenda.run(lambda: self.agenda.now >= until_s)

    def gaps_s(self, sessions: Sequence[int]) -> list[float]:
        """Waits between two commits of a session."""
        return [
            after.at_s - before.at_s
            for number in sessions
            for before, after in pairwise(self.commits[number])
        ]

    def num_tokens(self, from_s: float = 0.0) -> int:
        return sum(
            commit.num_tokens
            for commits in self.commits.values()
            for commit in commits
            if commit.at_s >= from_s
        )

    def _propose(self, link: WiredLink, proposal: Proposal) -> None:
        if link.peer_id not in self.frozen:
            self.coordinator.propose(link, proposal)

    def _on_commit(self, session: Session, committed: Committed) -> None:
        self.commits[session.number].append(Commit(self.agenda.now, len(committed.token_ids)))
        self.num_accepted += sum(committed.accepted_by_source.values())

    def _on_step(self, step: StepDone) -> None:
        self.steps_s.append(step.ended_s)
        for result in step.results:
            if result.token_ids:
                self.source_rows[result.session].append(result.num_source_rows)

    def _on_end(self, session: Session) -> None:
        self.ended_s[session.number] = self.agenda.now
        trace = self._again.pop(session.number, None)
        if trace is not None:
            has_nodes = session.request.volunteers != "none"
            self.agenda.after(0.0, lambda: self._reopen(trace, has_nodes=has_nodes))

    def _reopen(self, trace: Trace, *, has_nodes: bool) -> None:
        self.open(trace, has_nodes=has_nodes, again=True)
