"""A network that moves by itself, for the dashboard."""

from dataclasses import dataclass, field

import trio

from specedge_p2p.names import PeerId, SessionId
from specedge_p2p.views import (
    BenefitView,
    ContributionPoint,
    EngineView,
    GuessesView,
    NetworkView,
    NgramView,
    NodeView,
    ReceiptView,
    SessionView,
)

EMPTY = NetworkView(
    peer_id=PeerId("12D3KooWCoordinator7fGz"),
    addresses=("/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWCoordinator7fGz",),
    target_model="demo-target",
    uptime_s=4000,
    engine_is_ready=True,
    num_engine_restarts=0,
    engine_busy=0,
    tokens_per_s=0,
    num_tokens=0,
    num_accepted=0,
    acceptance_length=None,
    nodes=(),
    sessions=(),
    benefit=BenefitView(is_measured=True, num_needed=20),
)
BENEFIT = BenefitView(
    is_measured=True,
    ratio=1.212,
    low=1.148,
    high=1.274,
    num_drafted=4480,
    num_holdouts=34,
    num_needed=20,
)


def peer(number: int) -> PeerId:
    return PeerId(f"12D3KooWN{number:02d}dEeXy{number:03d}Qr{number:04d}")


@dataclass
class FakeQueries:
    num_nodes: int = 0
    num_sessions: int = 0
    draft_model: str = "demo-draft"
    benefit: BenefitView = BENEFIT
    num_snapshots: int = 0
    asked: list[tuple[float, float]] = field(default_factory=list)

    def network(self) -> NetworkView:
        self.num_snapshots += 1
        n = self.num_snapshots
        if not self.num_nodes:
            return EMPTY
        nodes = tuple(self._node(i) for i in range(self.num_nodes))
        return NetworkView(
            peer_id=EMPTY.peer_id,
            addresses=EMPTY.addresses,
            target_model="Qwen/Qwen3-32B",
            uptime_s=93_000 + n,
            engine_is_ready=True,
            num_engine_restarts=1,
            engine_busy=0.75 + 0.01 * (n % 20),
            tokens_per_s=412.5 + n,
            num_tokens=1_284_301 + 400 * n,
            num_accepted=803_204 + 250 * n,
            acceptance_length=2.61,
            nodes=nodes,
            sessions=tuple(self._session(i) for i in range(self.num_sessions)),
            num_held_out=36,
            benefit=self.benefit,
            guesses=GuessesView(
                num_by_nodes=600 + n,
                num_by_two=30,
                num_by_ngram=200,
                num_by_engine=50,
                num_by_nobody=400,
            ),
            engine=EngineView(
                step_time_s=0.0401,
                row_time_s=0.00008,
                row_price=0.0331,
                ngram=(NgramView(4, 0.61), NgramView(3, 0.42), NgramView(2, 0.2)),
                levels_per_step=0.24,
            ),
        )

    def _node(self, i: int) -> NodeView:
        return NodeView(
            peer_id=peer(i),
            draft_model=self.draft_model,
            num_sessions=i % 5,
            max_sessions=8,
            round_trip_s=None if i == 3 else 0.0132 * (i + 1),
            level_time_s=0.0085 + 0.001 * i,
            connected_s=100.0 * 9**i if i < 5 else 60,
            num_drafted=40_000 // (i + 1) + 31 * self.num_snapshots,
            num_accepted=21_000 // (i + 1) + 17 * self.num_snapshots,
            rest_s=320.0 if i == 4 else 0.0,
        )

    def _session(self, i: int) -> SessionView:
        return SessionView(
            session_id=SessionId(f"5e55{i:020d}"),
            nodes=() if i == 2 else (peer(i % self.num_nodes),),
            num_prompt_tokens=1200 + i,
            num_tokens=60 * (i + 1) + self.num_snapshots,
            num_rounds=25 * (i + 1),
            num_drafted_rounds=20 * (i + 1),
            num_accepted=35 * (i + 1),
            age_s=3.5 * (i + 1),
        )

    async def contributions(self, since_s: float, bucket_s: float) -> tuple[ContributionPoint, ...]:
        await trio.lowlevel.checkpoint()
        self.asked.append((since_s, bucket_s))
        return tuple(
            ContributionPoint(
                peer(i), since_s + bucket * bucket_s, (bucket * (i + 3) * 7) % 90 + 300 // (i + 1)
            )
            for i in range(self.num_nodes)
            for bucket in range(i * 4, 60)
        )

    async def latest_receipts(self, limit: int) -> tuple[ReceiptView, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(
            ReceiptView(
                peer_id=peer(i),
                sequence=90 + i,
                session_id=SessionId(f"5e55{i:020d}"),
                num_accepted=41 + i,
                micro_credits=(41 + i) * 1_000_000,
                at_s=1_780_000_000 + i,
                digest=f"{i:02x}c4d09ab1f27e{i:02x}",
            )
            for i in range(min(limit, self.num_nodes))
        )
