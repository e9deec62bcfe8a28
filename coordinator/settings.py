"""The settings of a coordinator, read once and passed on."""

import re
from dataclasses import dataclass
from pathlib import Path

from coordinator.engine.settings import Dtype
from specedge_p2p.errors import ClearError
from specedge_p2p.names import PeerId
from specedge_p2p.wire.messages import MAX_PROPOSAL_VERTICES, GrowthWishes

MAX_LEVELS = 1024
"""Of a lock-step round, as the wire has it."""


@dataclass(frozen=True, slots=True)
class Lockstep:
    """Lock-step rounds instead of continuous drafting; for measuring one against the other.

    Args:
        levels: how many a node grows below the root before it proposes.
        vertices: most vertices of a proposal.
        is_proactive: whether nodes grow on while they wait for the verdict.
        min_batch: sessions that must be ready before a step starts, if more can become ready.
        wait_s: how long a session waits for a proposal before it is served without.
    """

    levels: int
    vertices: int
    is_proactive: bool = True
    min_batch: int = 1
    wait_s: float = 2.0

    @classmethod
    def parse(cls, text: str) -> "Lockstep":
        """From LEVELSxVERTICES[:nopro][:BATCH], say 6x32:nopro:4. Raises ClearError."""
        found = re.fullmatch(r"(\d{1,4})x(\d{1,3})(:nopro)?(?::(\d{1,4}))?", text)
        if found is not None:
            levels, vertices, min_batch = (int(found[i] or 1) for i in (1, 2, 4))
            fits = 1 <= levels <= MAX_LEVELS and 1 <= vertices <= MAX_PROPOSAL_VERTICES
            if fits and min_batch >= 1:
                return cls(levels, vertices, found[3] is None, min_batch)
        raise ClearError(
            f"{text!r} are no lock-step rounds: give LEVELSxVERTICES[:nopro][:BATCH], say 6x32"
        )

    @property
    def wishes(self) -> GrowthWishes:
        """What nodes are told."""
        return GrowthWishes(
            lockstep_levels=self.levels,
            lockstep_vertices=self.vertices,
            is_proactive=self.is_proactive,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the coordinator takes on; a full one refuses clearly."""

    max_sessions: int = 64
    max_nodes: int = 512
    max_rows: int = 8
    """Most tree rows of one session in one step."""
    has_ngram: bool = True
    """Whether the engine guesses from a session's own text; only measurements do without."""
    prefill_tokens: int = 256
    """Most prompt tokens that one step prefills over all sessions."""
    lockstep: Lockstep | None = None
    """None: continuous drafting."""


@dataclass(frozen=True, slots=True)
class Timing:
    heartbeat_s: float = 2.0
    handshake_s: float = 10.0
    segment_s: float = 1.0
    """Accepted tokens reach the ledger at least this often."""
    lease_s: float = 60.0
    """How long a lost node may come back to its sessions."""


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """All that `specedge-coordinator serve` can be told.

    Args:
        home: folder of the identity.
        database_url: a SQLite file or a PostgreSQL URL.
    """

    home: Path
    database_url: str
    model: str = "demo-target"
    dtype: Dtype = "auto"
    device: str = "auto"
    threads: int = 1
    step_floor_s: float = 0.0
    host: str = "127.0.0.1"
    port: int = 8000
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    bootstrap: tuple[str, ...] = ()
    require_keys: bool = False
    allowed_nodes: frozenset[PeerId] = frozenset()
    """The nodes that draft for requests with `volunteers: allowed`."""
    draft_models: tuple[str, ...] = ()
    """Draft models suggested to nodes that leave the choice to the coordinator."""
    limits: Limits = Limits()
    timing: Timing = Timing()
