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
    rest_s: float = 0.0
    """For so long it gets no session, because its guesses do not pay."""


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
class BenefitView:
    """Tokens per engine second with volunteers over those without, at equal load.

    Sessions that volunteers draft for are compared with a few chosen at random that go without.
    """

    is_measured: bool = False
    """Sessions are held out at all."""
    ratio: float | None = None
    """None while too little was seen; then low and high, the 95 % interval, are None too."""
    low: float | None = None
    high: float | None = None
    num_drafted: int = 0
    num_holdouts: int = 0
    """Ended sessions compared, of either kind."""
    num_needed: int = 0
    """Sessions of either kind below which nothing is said."""


@dataclass(frozen=True, slots=True)
class GuessesView:
    """Committed tokens since the start by who had guessed them; each is counted once."""

    num_by_nodes: int = 0
    num_by_two: int = 0
    """Those of the nodes that a second node had guessed too."""
    num_by_ngram: int = 0
    num_by_engine: int = 0
    """By the engine's own draft model."""
    num_by_nobody: int = 0


@dataclass(frozen=True, slots=True)
class NgramView:
    """How often an n-gram guess of this order is right."""

    order: int
    hit_rate: float


@dataclass(frozen=True, slots=True)
class EngineView:
    """What the engine's steps cost and bring, as learned so far."""

    step_time_s: float = 0.0
    """Of a step with one row."""
    row_time_s: float = 0.0
    """Of each further row."""
    row_price: float = 0.0
    """Expected tokens that one more row must bring."""
    ngram: tuple[NgramView, ...] = ()
    levels_per_step: float | None = None
    """Levels of the engine's own draft model in the last seconds."""
    num_steps: int = 0
    num_levels: int = 0
    num_level_rows: int = 0
    level_s: float = 0.0
    """Time spent in levels since the start."""
    num_preempted: int = 0
    """Times that a session's rows had to give way in a full cache."""
    num_reused_rows: int = 0
    """Rows of prompts that were shared instead of computed."""


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
    num_held_out: int = 0
    """Sessions served without volunteers to measure what these bring, since the start."""
    benefit: BenefitView = BenefitView()
    guesses: GuessesView = GuessesView()
    engine: EngineView = EngineView()
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
