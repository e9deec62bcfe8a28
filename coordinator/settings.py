"""The settings of a coordinator, read once and passed on."""

from dataclasses import dataclass
from pathlib import Path

from coordinator.engine.settings import Dtype
from coordinator.scheduler.plan import FixedTree
from specedge_p2p.errors import ClearError
from specedge_p2p.names import PeerId

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
        emulate, stretch: the device that the engine's forwards are padded to; see lm/emulated.py.
    """

    home: Path
    database_url: str
    model: str = "demo-target"
    engine_draft: str = ""
    dtype: Dtype = "auto"
    device: str = "auto"
    threads: int = 1
    step_floor_s: float = 0.0
    emulate: str = ""
    stretch: float = 1.0
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
