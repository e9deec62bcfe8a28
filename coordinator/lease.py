"""One lease: a node's right to draft for a session, and what is said about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from coordinator.engine.messages import AddVertices
from coordinator.node_link import NodeLink
from coordinator.scheduler.needs import PATIENCE_S
from coordinator.sessions import Session
from specedge_p2p.names import LeaseId, PeerId
from specedge_p2p.wire.build import open_messages
from specedge_p2p.wire.columns import pack_tokens
from specedge_p2p.wire.messages import (
    GrowthWishes,
    Open,
    Prompt,
    Proposal,
    Refuse,
    Resume,
    Role,
    Verdict,
)

TREE_S = 0.5
"""From a node's first proposal until one of its trees should be alive when a step begins."""
PROMPT_TOKEN_S = 0.002
"""A node may take so much longer to its first proposal for every token that it is given."""


@dataclass(slots=True)
class Lease:
    """A node's right to draft for one session; `node` is None while its link is lost."""

    lease_id: LeaseId
    peer_id: PeerId
    session: Session
    source: int
    role: Role = "active"
    wishes: GrowthWishes = GrowthWishes()
    """What its node was told; a right to a larger tree is never taken back."""
    opened_s: float = 0.0
    patience_s: float = PATIENCE_S
    """Time after `opened_s` in which nothing is expected."""
    owes_since_s: float | None = None
    """When the oldest verdict was sent that no proposal has followed; None before the first."""
    node: NodeLink | None = None
    session_no: int = 0
    lost_s: float = 0.0
    tree_no: int = 0
    """The last tree that the node started on this link."""
    ended_tree_no: int = 0
    """Trees up to this one are lost with an engine; what still arrives of them is dropped."""
    proposed_s: float | None = None
    """When the first proposal came, since the node's link began."""
    has_lived: bool = False
    """Since then a tree of the node was alive when a step began."""
    is_released: bool = False

    @property
    def has_proposed(self) -> bool:
        """Since the node's link began."""
        return self.tree_no > 0

    def begin(self, node: NodeLink, now_s: float) -> None:
        """On a new link everything but the session begins again."""
        self.node, self.session_no = node, node.new_session_no()
        self.opened_s = now_s
        self.patience_s = PATIENCE_S + PROMPT_TOKEN_S * len(self.session.token_ids)
        self.tree_no = self.ended_tree_no = 0
        self.restart()
        self.owes_since_s = None

    @property
    def due_s(self) -> float:
        """From then on a tree of the node should live: who proposes has read the prompt."""
        due_s = self.opened_s + self.patience_s
        return due_s if self.proposed_s is None else min(due_s, self.proposed_s + TREE_S)

    def restart(self) -> None:
        """The engine knows no tree of the node."""
        self.proposed_s, self.has_lived = None, False


def opening(
    lease: Lease, max_context: int, resumed_at: int | None = None
) -> Sequence[Open | Prompt]:
    """What a node is told first: all committed tokens, or nothing where it resumes."""
    session = lease.session
    sampling = session.request.sampling
    head = Open(
        session_no=lease.session_no,
        lease_id=lease.lease_id,
        num_tokens=len(session.token_ids) if resumed_at is None else resumed_at,
        noise_key=session.noise_key,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        max_position=min(max_context, session.prompt_length + session.max_tokens),
        role=lease.role,
        wishes=lease.wishes,
        resumed=resumed_at is not None,
    )
    return (head,) if head.resumed else open_messages(head, session.token_ids)


def verdict_of(
    lease: Lease, position: int, token_ids: list[int], num_accepted: int, restart: int = 0
) -> Verdict:
    return Verdict(
        session_no=lease.session_no,
        round_no=lease.session.num_rounds,
        from_position=position,
        token_ids=pack_tokens(token_ids),
        num_accepted=num_accepted,
        role=lease.role,
        restart_tree_no=restart,
    )


def may_resume(lease: Lease | None, node: NodeLink) -> TypeGuard[Lease]:
    if lease is None or lease.peer_id != node.peer_id or lease.is_released:
        return False
    return lease.session.is_live


def refusal(message: Resume, code: str, text: str) -> Refuse:
    return Refuse(code, text, message.lease_id)


def vertices_of(lease: Lease, proposal: Proposal) -> AddVertices:
    """What the engine is told of a proposal."""
    return AddVertices(
        session=lease.session.number,
        source=lease.source,
        tree_no=proposal.tree_no,
        first_index=proposal.first_index,
        base_position=proposal.base_position,
        token_ids=proposal.token_ids,
        parents=proposal.parents,
        log_probs=proposal.log_probs,
    )
