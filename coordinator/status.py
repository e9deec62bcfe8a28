"""The live network as frozen read models, for the dashboard, /healthz and /metrics."""

from collections.abc import Callable

from coordinator.engine.messages import NGRAM_ORDERS
from coordinator.engine.ports import Engine
from coordinator.leases import Leases
from coordinator.load import Load
from coordinator.node_link import NodeLink
from coordinator.policy import StepPolicy
from coordinator.scheduler.benefit import MIN_SESSIONS
from coordinator.sessions import Session, Sessions
from coordinator.settings import Limits
from specedge_p2p.overlay.ports import Overlay
from specedge_p2p.views import (
    BenefitView,
    EngineView,
    GuessesView,
    NetworkView,
    NgramView,
    NodeView,
    SessionView,
)


class Status:
    def __init__(  # noqa: PLR0913 - it shows all of these and changes none
        self,
        overlay: Overlay,
        engine: Engine,
        sessions: Sessions,
        leases: Leases,
        load: Load,
        policy: StepPolicy,
        limits: Limits,
        target_model: str,
        clock: Callable[[], float],
    ) -> None:
        self._overlay, self._engine, self._sessions = overlay, engine, sessions
        self._leases, self._load, self._target_model = leases, load, target_model
        self._policy, self._limits, self._clock = policy, limits, clock

    def network(self) -> NetworkView:
        load = self._load
        return NetworkView(
            peer_id=self._overlay.peer_id,
            addresses=self._overlay.addresses,
            target_model=self._target_model,
            uptime_s=load.uptime_s,
            engine_is_ready=self._engine.is_ready,
            num_engine_restarts=self._engine.num_restarts,
            engine_busy=load.engine_busy,
            tokens_per_s=load.tokens_per_s,
            num_tokens=load.num_tokens,
            num_accepted=load.num_accepted,
            acceptance_length=load.acceptance_length,
            nodes=tuple(self._node(node) for node in self._leases.nodes),
            sessions=tuple(self._session(session) for session in self._sessions),
            engine_s=load.engine_s,
            num_rounds=load.num_rounds,
            num_node_bytes=self._leases.num_bytes_received,
            num_held_out=load.num_holdouts,
            benefit=self._benefit(),
            guesses=self._guesses(),
            engine=self._engine_costs(),
            padding=load.padding.view,
        )

    def _benefit(self) -> BenefitView:
        estimate = self._load.benefit.estimate()
        return BenefitView(
            is_measured=self._limits.holdout_rate > 0,
            ratio=estimate.ratio,
            low=estimate.low,
            high=estimate.high,
            num_drafted=estimate.num_drafted,
            num_holdouts=estimate.num_holdouts,
            num_needed=MIN_SESSIONS,
        )

    def _guesses(self) -> GuessesView:
        load = self._load
        return GuessesView(
            num_by_nodes=load.num_accepted,
            num_by_two=load.num_second,
            num_by_ngram=load.num_ngram,
            num_by_engine=load.num_own,
            num_by_nobody=load.num_tokens - load.num_accepted - load.num_ngram - load.num_own,
        )

    def _engine_costs(self) -> EngineView:
        costs, load = self._policy.costs, self._load
        rates = costs.ngram_hit_rates if self._limits.has_ngram else ()
        return EngineView(
            step_time_s=costs.step.step_time_s,
            row_time_s=costs.step.row_time_s,
            row_price=costs.row_price,
            ngram=tuple(map(NgramView, NGRAM_ORDERS, rates)),
            levels_per_step=load.levels_per_step,
            num_steps=load.num_steps,
            num_levels=load.num_levels,
            num_level_rows=load.num_level_rows,
            level_s=load.level_s,
            num_preempted=load.num_preempted,
            num_reused_rows=load.num_reused_rows,
        )

    def _node(self, node: NodeLink) -> NodeView:
        return NodeView(
            peer_id=node.peer_id,
            draft_model=node.hello.draft_model,
            num_sessions=len(self._leases.of_node(node)),
            max_sessions=node.max_sessions,
            round_trip_s=node.round_trip_s,
            level_time_s=node.level_time_s,
            connected_s=self._clock() - node.connected_s,
            num_drafted=node.num_drafted,
            num_accepted=node.num_accepted,
            rest_s=self._leases.rest_s(node.peer_id),
        )

    def _session(self, session: Session) -> SessionView:
        return SessionView(
            session_id=session.session_id,
            nodes=self._leases.drafting_peers(session),
            num_prompt_tokens=session.prompt_length,
            num_tokens=session.num_tokens,
            num_rounds=session.num_rounds,
            num_drafted_rounds=session.num_drafted_rounds,
            num_accepted=session.num_accepted,
            age_s=self._clock() - session.opened_s,
        )
