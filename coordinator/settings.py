"""The settings of a coordinator, read once and passed on."""

import re
from dataclasses import dataclass
from pathlib import Path

from coordinator.engine.settings import Dtype
from coordinator.scheduler.plan import FixedTree
from specedge_p2p.errors import ClearError
from specedge_p2p.lm.quantization import Quantize
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


MAX_TREE_LEVELS = 32
MAX_TREE_WIDTH = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the coordinator takes on; a full one refuses clearly."""

    max_sessions: int = 64
    max_nodes: int = 512
    max_rows: int = 32
    """Most tree rows of one session in one step."""
    has_ngram: bool = True
    """Whether the engine guesses from a session's own text; only measurements do without."""
    prefill_tokens: int = 256
    """Most prompt tokens that one step prefills over all sessions."""
    max_batch: int = 0
    """Most sessions that one step decodes, 0 for all."""
    engine_tree: FixedTree | None = None
    """What the engine's own draft model grows in every step; None: what pays."""
    holdout_rate: float = 0.0075
    """Share of the sessions that volunteers could draft for and do not, to measure what they
    bring."""
    wishes: GrowthWishes = GrowthWishes()
    """What nodes are asked for while they draft continuously."""
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
        engine_draft: the engine's own draft model, "" for none.
        kv_memory: memory of the target's cache; see EngineSettings.
        emulate, stretch: the device that the engine's forwards are padded to; see lm/emulated.py.
    """

    home: Path
    database_url: str
    model: str = "demo-target"
    engine_draft: str = ""
    dtype: Dtype = "auto"
    quantize: Quantize = "none"
    device: str = "auto"
    threads: int = 1
    kv_memory: str = ""
    step_floor_s: float = 0.0
    emulate: str = ""
    stretch: float = 1.0
    tensor_parallel: int = 1
    """Devices that share the target model."""
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


def parse_tree(text: str) -> FixedTree | None:
    """A fixed tree spelt as levels x width; None for "off" and "auto". Raises ClearError."""
    if text in ("off", "auto"):
        return None
    depth, _, width = text.partition("x")
    if depth.isdecimal() and width.isdecimal():
        tree = int(depth), int(width)
        if 1 <= tree[0] <= MAX_TREE_LEVELS and 1 <= tree[1] <= MAX_TREE_WIDTH:
            return FixedTree(*tree)
    raise ClearError(
        f"the engine's tree cannot be {text!r}: say off, auto or a fixed one such as 3x4, of up to "
        f"{MAX_TREE_LEVELS} levels and {MAX_TREE_WIDTH} vertices in each"
    )
