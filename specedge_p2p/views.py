"""Frozen read models that people are shown."""

from dataclasses import dataclass

from specedge_p2p.names import PeerId, SessionId


@dataclass(frozen=True, slots=True)
class NodeView:
    peer_id: PeerId
    draft_model: str
    num_sessions: int
    max_sessions: int
    round_trip_s: float | None
    level_time_s: float
    connected_s: float
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True)
class SessionView:
    session_id: SessionId
    nodes: tuple[PeerId, ...]
    num_prompt_tokens: int
    num_tokens: int
    num_rounds: int
    num_drafted_rounds: int
    num_accepted: int
    age_s: float


@dataclass(frozen=True, slots=True)
class PaddingView:
    """Forwards of an engine that emulates another device; all 0 where it does not."""

    num_forwards: int = 0
    num_late: int = 0
    """Those that ended after their padded time."""
    used_s: float = 0.0
    """What the real work took."""
    padded_s: float = 0.0
    """What the forwards were to take."""


@dataclass(frozen=True, slots=True)
class NetworkView:
    peer_id: PeerId
    addresses: tuple[str, ...]
    target_model: str
    uptime_s: float
    engine_is_ready: bool
    num_engine_restarts: int
    engine_busy: float
    """Share of the last seconds in which the engine ran a step, 0 to 1."""
    tokens_per_s: float
    num_tokens: int
    num_accepted: int
    acceptance_length: float | None
    nodes: tuple[NodeView, ...]
    sessions: tuple[SessionView, ...]
    engine_s: float = 0.0
    """Time that the engine spent in steps since the start."""
    num_rounds: int = 0
    num_node_bytes: int = 0
    """Received from nodes since the start."""
    padding: PaddingView = PaddingView()


@dataclass(frozen=True, slots=True)
class ContributionPoint:
    """Accepted tokens of one node in one bucket of time."""

    peer_id: PeerId
    at_s: float
    """Start of the bucket, Unix seconds."""
    num_accepted: int


@dataclass(frozen=True, slots=True)
class ReceiptView:
    peer_id: PeerId
    sequence: int
    session_id: SessionId
    num_accepted: int
    micro_credits: int
    at_s: float
    digest: str
    """First 16 hex digits of the receipt's hash."""
