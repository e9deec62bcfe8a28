"""Thousands of sessions without their trees: what a step brings is replayed, not computed.

Small worlds with every vertex record, for each kind of node, what one step after the other brought
to a session. A crowd then replays these trails session by session. The plan, the leases and the
matching are the real ones and see what they would see; the engine and the nodes are only their
costs.

`python -m tests.simulator.outcomes --nodes 10000 --sessions 2000 --seconds 60`
"""

import argparse
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from random import Random

import numpy as np

from coordinator.engine.measure import NO_PRICE, StepPrice
from coordinator.engine.messages import (
    CloseSession,
    EntryResult,
    FromEngine,
    OpenSession,
    Ready,
    StepDone,
    StepEntry,
    ToEngine,
    TokenSource,
    VerificationBatch,
)
from coordinator.policy import StepPolicy
from coordinator.scheduler.factors import Factors
from coordinator.scheduler.plan import PlanLimits
from coordinator.sessions import Committed, Session
from specedge_p2p.names import PeerId
from tests.simulator.coordinator import SimCoordinator
from tests.simulator.crowd import collect_rarely
from tests.simulator.events import Agenda, LinkQuality
from tests.simulator.models import MAX_CONTEXT, USELESS
from tests.simulator.node import StillNode
from tests.simulator.profiles import ENGINES, EngineCosts, NodeCosts
from tests.simulator.traces import Trace, TraceBook, demo_book
from tests.simulator.world import NodePlan, Outcome, World, WorldPlan

NOBODY = "nobody"
KINDS = {
    "near": NodePlan(NodeCosts(0.006), LinkQuality(0.015)),
    "far": NodePlan(NodeCosts(0.006), LinkQuality(0.08)),
    "slow": NodePlan(NodeCosts(0.02), LinkQuality(0.03)),
    USELESS: NodePlan(NodeCosts(0.006), LinkQuality(0.015), draft=USELESS),
}
SHARES = {"near": 0.4, "far": 0.3, "slow": 0.25, USELESS: 0.05}
WARM_UP = 0.2
"""Share of a run before which nothing is counted."""
Trails = dict[str, Sequence[Sequence[Outcome]]]


def record_trails(
    book: TraceBook, costs: EngineCosts, num_sessions: int, max_batch: int, num_tokens: int = 2000
) -> Trails:
    """What steps bring, by kind of node, to a session of a crowd of this size.

    Four sessions stand for all of them: they are verified as seldom, and their rows are as dear.
    """
    turns, others = max(1.0, num_sessions / max_batch), max(1.0, num_sessions / 4)
    slow = EngineCosts(costs.step_s * turns, costs.step_row_s * others, 0.0, 0.0)
    base = WorldPlan(engine=slow, num_sessions=4, num_tokens=num_tokens, warm_up=0.0)
    trails: Trails = {}
    for kind in (NOBODY, *KINDS):
        nodes = (KINDS[kind],) * 4 if kind in KINDS else ()
        world = World(replace(base, nodes=nodes), book)
        world.run()
        trails[kind] = list(world.trails.values())
    return trails


@dataclass(slots=True)
class _Replayed:
    """A session of the replaying engine."""

    opened: OpenSession
    num_tokens: int
    num_missing: int
    """Prompt tokens that have no row yet."""
    finish: str = ""
    num_steps: int = 0


class ReplayEngine:
    """Looks like `SimEngine` to a coordinator.

    Args:
        kind_of: the kind of node behind a source of a session.
        tell: takes what the engine says.
    """

    def __init__(
        self,
        agenda: Agenda,
        costs: EngineCosts,
        trails: Trails,
        tokens_of: Callable[[int], Sequence[int]],
        kind_of: Callable[[int, int], str],
        tell: Callable[[FromEngine], None],
    ) -> None:
        self._agenda, self._costs, self._trails = agenda, costs, trails
        self._tokens_of, self._kind_of, self._tell = tokens_of, kind_of, tell
        self._sessions: dict[int, _Replayed] = {}
        self._queued: deque[VerificationBatch] = deque()
        self._is_running = False

    def ready(self) -> Ready:
        step = StepPrice(self._costs.step_time_s(1), self._costs.step_row_s)
        return Ready(
            model="replayed",
            vocab_size=1 << 12,
            max_context=MAX_CONTEXT,
            eos_token_ids=[],
            dtype="float32",
            fingerprint=b"replayed",
            step_time_s=step.step_time_s,
            row_time_s=step.row_time_s,
            level_time_s=NO_PRICE.step_time_s,
        )

    def is_decoded(self, result: EntryResult) -> bool:
        opened = self._sessions.get(result.session)
        return opened is not None and result.from_position > opened.opened.prompt_length

    def send(self, *messages: ToEngine) -> None:
        for message in messages:
            match message:
                case OpenSession():
                    num_prompt = len(message.token_ids)
                    self._sessions[message.session] = _Replayed(message, num_prompt, num_prompt)
                case CloseSession(session):
                    self._sessions.pop(session, None)
                case VerificationBatch():
                    self._queued.append(message)
                case _:
                    pass  # trees are not looked at
        if not self._is_running:
            self._next_step()

    def _next_step(self) -> None:
        if not self._queued:
            return
        batch = self._queued.popleft()
        self._is_running = True
        results, num_rows = self._results(batch)
        started_s = self._agenda.now

        def end() -> None:
            self._is_running = False
            self._next_step()
            self._tell(StepDone(batch.step_no, started_s, self._agenda.now, 0.0, num_rows, results))

        self._agenda.after(self._costs.step_time_s(num_rows), end)

    def _results(self, batch: VerificationBatch) -> tuple[list[EntryResult], int]:
        """What the entries bring, and the rows of the forward; prompts are free."""
        results: list[EntryResult] = []
        budget, num_rows = batch.prefill_tokens, 0
        decoding = [e for e in batch.entries if self._is_decoding(e)]
        served = sorted(decoding, key=lambda e: not e.must)[: batch.max_sessions or None]
        for entry in served:
            results.append(self._decode(entry))
            num_rows += 1 + results[-1].num_rows
        for entry in batch.entries:
            session = self._sessions.get(entry.session)
            if session is not None and session.num_missing and budget > 0:
                share = min(budget, session.num_missing)
                budget -= share
                session.num_missing -= share
                results.append(self._prefill(entry.session, session))
                num_rows += 1
        return results, num_rows

    def _is_decoding(self, entry: StepEntry) -> bool:
        session = self._sessions.get(entry.session)
        return session is not None and not session.num_missing and not session.finish

    def _prefill(self, number: int, session: _Replayed) -> EntryResult:
        if session.num_missing:
            return EntryResult(number, session.num_tokens, [], [], 0, 0)
        return self._advance(number, session, Outcome(1, 0, 0), 0)

    def _decode(self, entry: StepEntry) -> EntryResult:
        session = self._sessions[entry.session]
        source = entry.sources[0].source if entry.sources else 0
        kind = self._kind_of(entry.session, source) if source else NOBODY
        trails = self._trails[kind]
        trail = trails[entry.session % len(trails)]
        outcome = trail[session.num_steps % len(trail)]
        session.num_steps += 1
        return self._advance(entry.session, session, outcome, source)

    def _advance(
        self, number: int, session: _Replayed, outcome: Outcome, source: int
    ) -> EntryResult:
        start, tokens = session.num_tokens, self._tokens_of(number)
        new = list(tokens[start : start + outcome.num_tokens])
        session.num_tokens += len(new)
        session.finish = "length" if session.num_tokens == len(tokens) else ""
        sources = [TokenSource(source)] * (len(new) - 1) + [TokenSource()]
        return EntryResult(
            session=number,
            from_position=start,
            token_ids=new,
            sources=sources,
            num_rows=outcome.num_rows,
            num_source_rows=outcome.num_source_rows if source else 0,
            finish=session.finish,
        )


class Crowd:
    """Many sessions and nodes around a replaying engine.

    Args:
        max_batch: most sessions in one step.
        churn_s: mean time until a node breaks off; it is away for a fifth of that.
    """

    def __init__(
        self,
        book: TraceBook,
        trails: Trails,
        costs: EngineCosts,
        num_sessions: int,
        num_nodes: int,
        max_batch: int,
        churn_s: float,
        seed: int = 1,
    ) -> None:
        self._prompts = cycle(book.at(0.7))
        self._traces: dict[int, Trace] = {}
        self._random = Random(seed)
        self._num_sessions, self._churn_s = num_sessions, churn_s
        self.agenda = Agenda()
        limits = PlanLimits(
            max_rows=32,
            max_batch=max_batch,
            max_sessions=4096,
            prefill_tokens=1 << 20,
            prefill_share=1e6,  # prompts are free
        )
        factors = Factors()
        self.policy = TimedPolicy(limits, lambda: self.agenda.now, factors)
        self.coordinator = SimCoordinator(
            self.agenda,
            self.policy,
            factors,
            book.vocab_size,
            self._on_commit,
            lambda step: None,
            self._on_end,
        )
        engine = ReplayEngine(
            self.agenda,
            costs,
            trails,
            lambda number: self._traces[number].tokens,
            self._kind_of,
            self.coordinator.hear,
        )
        self.coordinator.start(engine)
        kinds, weights = list(SHARES), list(SHARES.values())
        self._kinds: dict[PeerId, str] = {}
        self.nodes = []
        for i in range(num_nodes):
            peer_id = PeerId(f"node-{i:05}")
            kind = self._kinds[peer_id] = self._random.choices(kinds, weights)[0]
            self.nodes.append(StillNode(peer_id, self.agenda, KINDS[kind], max_sessions=4))
        self.num_tokens = self.num_breaks = self.num_finished = 0
        self.gaps_s: list[float] = []
        self._last_commit_s: dict[int, float] = {}

    def run(self, seconds: float) -> None:
        for _ in range(self._num_sessions):
            self._open_next()
        self.coordinator.join(*self.nodes)
        for node in self.nodes:
            self._break_later(node)
        self.coordinator.pump()
        self.agenda.run(lambda: self.agenda.now >= WARM_UP * seconds)
        self.num_tokens = 0
        self.gaps_s.clear()
        self.agenda.run(lambda: self.agenda.now >= seconds)

    @property
    def tokens_per_s(self) -> float:
        """After the warm-up."""
        return self.num_tokens / ((1.0 - WARM_UP) * self.agenda.now)

    @property
    def share_drafted(self) -> float:
        """Share of the live sessions that a node drafts for at this moment."""
        live = list(self.coordinator.sessions)
        drafted = sum(bool(self.coordinator.leases.drafting_peers(session)) for session in live)
        return drafted / len(live)

    def _kind_of(self, number: int, source: int) -> str:
        session = self.coordinator.sessions.get(number)
        return NOBODY if session is None else self._kinds[session.nodes_by_source[source]]

    def _open_next(self) -> None:
        trace = next(self._prompts)
        session = self.coordinator.open(trace, volunteers=True)
        self._traces[session.number] = trace
        self._last_commit_s[session.number] = self.agenda.now

    def _on_commit(self, session: Session, committed: Committed) -> None:
        self.num_tokens += len(committed.token_ids)
        self.gaps_s.append(self.agenda.now - self._last_commit_s[session.number])
        self._last_commit_s[session.number] = self.agenda.now

    def _on_end(self, session: Session) -> None:
        self.num_finished += 1
        self._open_next()

    def _break_later(self, node: StillNode) -> None:
        def come_back() -> None:
            self.coordinator.join(node)
            self._break_later(node)

        def go() -> None:
            self.num_breaks += 1
            self.coordinator.leave(node)
            self.agenda.after(self._random.expovariate(5.0 / self._churn_s), come_back)

        self.agenda.after(self._random.expovariate(1.0 / self._churn_s), go)


class TimedPolicy(StepPolicy):
    """Takes the real time of every plan."""

    plan_times_s: tuple[float, ...] = ()

    def plan(self, *args: object, **more: object) -> VerificationBatch:
        started_s = time.perf_counter()
        batch = super().plan(*args, **more)  # type: ignore[arg-type]
        self.plan_times_s += (time.perf_counter() - started_s,)
        return batch


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.outcomes", description=__doc__)
    parser.add_argument("--device", choices=ENGINES, default="h200-14b")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--max-batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--churn-s", type=float, default=300.0)
    options = parser.parse_args()
    book, costs = demo_book(), ENGINES[options.device]
    trails = record_trails(book, costs, options.sessions, options.max_batch)
    for num_nodes in (0, options.nodes):
        started = time.process_time()
        crowd = Crowd(
            book,
            trails,
            costs,
            options.sessions,
            num_nodes,
            options.max_batch,
            options.churn_s,
        )
        collect_rarely()
        crowd.run(options.seconds)
        p95, most = np.percentile(crowd.gaps_s, 95), max(crowd.gaps_s)
        plan_s = np.median(crowd.policy.plan_times_s)
        print(
            f"{num_nodes} nodes, {options.sessions} sessions, {options.seconds:.0f} s in "
            f"{time.process_time() - started:.0f} s of CPU: {crowd.tokens_per_s:.0f} "
            f"tok/s, {crowd.num_finished} generations, {crowd.num_breaks} breaks, gaps p95 "
            f"{p95:.2f} s, longest {most:.2f} s; {crowd.share_drafted:.2f} of the sessions have "
            f"a node; a plan takes {1000 * plan_s:.2f} ms"
        )


if __name__ == "__main__":
    main()
