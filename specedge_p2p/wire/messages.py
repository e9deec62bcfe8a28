"""The messages between node and coordinator (protocol /specedge/draft/1).

They are encoded as msgpack arrays and may only grow by appended fields with defaults. Numbers that
a peer chose are hostile until `wire/link_machine.py` has checked them.
"""

from typing import Literal

import msgspec

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 64 * 1024
PROMPT_CHUNK_TOKENS = 4096  # 12 kB: below the 16 kB that may delay a verdict
MAX_TEXT = 512

Role = Literal["active", "standby"]


class Message(
    msgspec.Struct, frozen=True, array_like=True, tag_field="t", forbid_unknown_fields=False
):
    """Base of all messages."""


# --- node to coordinator -------------------------------------------------------------------------


class Hello(Message, frozen=True, array_like=True, tag=1):
    """First message of a node. Versions are an inclusive range."""

    min_version: int
    max_version: int
    draft_model: str
    model_fingerprint: bytes
    tokenizer_fingerprint: bytes
    max_sessions: int
    level_time_s: float
    """Measured time of one level with one session."""
    software: str = ""


class Proposal(Message, frozen=True, array_like=True, tag=2):
    """New vertices of one tree, parents first, best first. Columns are little-endian binaries.

    token_ids: 3 bytes each; parents: 2 bytes each, tree indices below the vertex's own;
    log_probs: 1 byte each, -log P(token | parent) in 1/16 nat, 255 = that or less likely.
    Vertex i has tree index first_index + i; index 0 is the vertex that the tree started from.
    """

    session_no: int
    tree_no: int
    first_index: int
    base_position: int
    token_ids: bytes
    parents: bytes
    log_probs: bytes
    padding: bytes = b""


class Pong(Message, frozen=True, array_like=True, tag=3):
    nonce: int


class Capacity(Message, frozen=True, array_like=True, tag=4):
    """How many sessions the node takes from now on; 0 pauses new ones."""

    max_sessions: int


class Release(Message, frozen=True, array_like=True, tag=5):
    """The node stops drafting for a session."""

    session_no: int
    reason: str = ""


class Resume(Message, frozen=True, array_like=True, tag=6):
    """After a reconnect: go on with a lease; the node knows the committed tokens below position."""

    lease_id: bytes
    position: int


class ReceiptRequest(Message, frozen=True, array_like=True, tag=7):
    """Send again the receipts after this sequence number (0: all)."""

    after_sequence: int


class Goodbye(Message, frozen=True, array_like=True, tag=8):
    """The node leaves on purpose."""

    reason: str = ""


# --- coordinator to node -------------------------------------------------------------------------


class Welcome(Message, frozen=True, array_like=True, tag=32):
    version: int
    target_model: str
    vocab_size: int
    max_context: int
    heartbeat_s: float
    """A link on which nothing arrived for three of these is dead."""
    software: str = ""


class Refuse(Message, frozen=True, array_like=True, tag=33):
    """The handshake (or a Resume, then with its lease_id) is refused."""

    code: str
    text: str
    lease_id: bytes = b""


class GrowthWishes(msgspec.Struct, frozen=True, array_like=True):
    """What the coordinator wishes of a node's growth in one session."""

    min_prob: float = 0.003
    look_ahead: int = 24
    max_unverified: int = 256
    """Live vertices allowed; raised but never lowered within a lease."""


class Open(Message, frozen=True, array_like=True, tag=34):
    """A session begins; `num_tokens` committed tokens follow in Prompt chunks.

    A resumed session is opened with `resumed` and no chunks; its first Verdict starts at the
    position that Resume named. A fresh one's first Verdict starts at num_tokens.
    """

    session_no: int
    lease_id: bytes
    num_tokens: int
    noise_key: bytes
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    max_position: int
    """No token stands at or beyond this absolute position."""
    role: Role
    wishes: GrowthWishes
    resumed: bool = False


class Prompt(Message, frozen=True, array_like=True, tag=35):
    """Committed tokens [offset, offset + n) of an opened session, 3 bytes each."""

    session_no: int
    offset: int
    token_ids: bytes


class Verdict(Message, frozen=True, array_like=True, tag=36):
    """Newly committed tokens, however they came about.

    Args:
        round_no: number of the verification round; merged verdicts carry the last one.
        from_position: absolute position of the first of token_ids.
        token_ids: 3 bytes each.
        num_accepted: how many of them this node's tree earned.
        restart_tree_no: the node's tree with this number has ended; 0 for none.
    """

    session_no: int
    round_no: int
    from_position: int
    token_ids: bytes
    num_accepted: int
    role: Role = "active"
    restart_tree_no: int = 0


class Tune(Message, frozen=True, array_like=True, tag=37):
    session_no: int
    wishes: GrowthWishes


class Receipt(Message, frozen=True, array_like=True, tag=38):
    """One signed receipt; `envelope` is opaque here (see identity/receipt.py)."""

    envelope: bytes


class Ping(Message, frozen=True, array_like=True, tag=39):
    nonce: int


class Drain(Message, frozen=True, array_like=True, tag=40):
    """The coordinator is about to stop; no new sessions will come."""

    reason: str = ""


class Close(Message, frozen=True, array_like=True, tag=41):
    """A session ended."""

    session_no: int
    reason: str = ""


NodeMessage = Hello | Proposal | Pong | Capacity | Release | Resume | ReceiptRequest | Goodbye
CoordinatorMessage = (
    Welcome | Refuse | Open | Prompt | Verdict | Tune | Receipt | Ping | Drain | Close
)
