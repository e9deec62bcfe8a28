"""The messages between node and coordinator (protocol /specedge/draft/1).

They are encoded as msgpack arrays and may only grow by appended fields with defaults. What one
field may hold by itself is said in its type and checked when a frame is decoded; what depends on
other fields or on what was said before is checked by `wire/link_machine.py`.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 64 * 1024
MAX_MESSAGES_PER_FRAME = 1024
PROMPT_CHUNK_TOKENS = 4096  # 12 kB: below the 16 kB that may delay a verdict
MAX_VERDICT_TOKENS = PROMPT_CHUNK_TOKENS
MAX_PROPOSAL_VERTICES = 512
MAX_UNVERIFIED = 1024
MAX_TREE_INDEX = 65_535
TREE_INDEX_TO_RESTART = 65_000
"""A node whose tree reached this index starts a new one."""
MAX_SESSIONS = 4096
MAX_CONTEXT = 1 << 22
MAX_VOCAB = 1 << 24  # token ids have 24 bits
MAX_TEXT = 512

Role = Literal["active", "standby"]
Count = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
Ordinal = Annotated[int, Meta(ge=1, le=(1 << 32) - 1)]
Sequence64 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
SessionCount = Annotated[int, Meta(ge=0, le=MAX_SESSIONS)]
Position = Annotated[int, Meta(ge=0, le=MAX_CONTEXT)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Code = Annotated[str, Meta(min_length=1, max_length=64)]
Fingerprint = Annotated[bytes, Meta(max_length=64)]
Lease = Annotated[bytes, Meta(min_length=16, max_length=16)]
Key = Annotated[bytes, Meta(min_length=16, max_length=16)]


class Message(
    msgspec.Struct, frozen=True, array_like=True, tag_field="t", forbid_unknown_fields=False
):
    """Base of all messages."""


# --- node to coordinator -------------------------------------------------------------------------


class Hello(Message, frozen=True, array_like=True, tag=1):
    """First message of a node. Versions are an inclusive range."""

    min_version: Count
    max_version: Count
    draft_model: Text
    model_fingerprint: Fingerprint
    tokenizer_fingerprint: Fingerprint
    max_sessions: SessionCount
    level_time_s: Seconds
    """Measured time of one level with one session."""
    software: Text = ""
    level_session_time_s: Seconds = 0.0
    """What each further session adds to the time of a level."""


class Proposal(Message, frozen=True, array_like=True, tag=2):
    """New vertices of one tree, parents first, best first. Columns are little-endian binaries.

    token_ids: 3 bytes each; parents: 2 bytes each, tree indices below the vertex's own;
    log_probs: 1 byte each, -log P(token | parent) in 1/16 nat, 255 = that or less likely.
    Vertex i has tree index first_index + i; index 0 is the vertex that the tree started from.
    """

    session_no: Ordinal
    tree_no: Ordinal
    first_index: Annotated[int, Meta(ge=1, le=MAX_TREE_INDEX)]
    base_position: Position
    token_ids: Annotated[bytes, Meta(max_length=3 * MAX_PROPOSAL_VERTICES)]
    parents: Annotated[bytes, Meta(max_length=2 * MAX_PROPOSAL_VERTICES)]
    log_probs: Annotated[bytes, Meta(min_length=1, max_length=MAX_PROPOSAL_VERTICES)]
    padding: Annotated[bytes, Meta(max_length=255)] = b""


class Pong(Message, frozen=True, array_like=True, tag=3):
    nonce: Sequence64


class Capacity(Message, frozen=True, array_like=True, tag=4):
    """How many sessions the node takes from now on; 0 pauses new ones.

    level_time_s and level_session_time_s: as in Hello, measured anew; 0 where nothing has changed.
    """

    max_sessions: SessionCount
    level_time_s: Seconds = 0.0
    level_session_time_s: Seconds = 0.0


class Release(Message, frozen=True, array_like=True, tag=5):
    """The node stops drafting for a session."""

    session_no: Ordinal
    reason: Text = ""


class Resume(Message, frozen=True, array_like=True, tag=6):
    """After a reconnect: go on with a lease; the node knows the committed tokens below position."""

    lease_id: Lease
    position: Annotated[int, Meta(ge=1, le=MAX_CONTEXT)]


class ReceiptRequest(Message, frozen=True, array_like=True, tag=7):
    """Send again the receipts after this sequence number (0: all)."""

    after_sequence: Sequence64


class Goodbye(Message, frozen=True, array_like=True, tag=8):
    """The node leaves on purpose."""

    reason: Text = ""


# --- coordinator to node -------------------------------------------------------------------------


class Welcome(Message, frozen=True, array_like=True, tag=32):
    version: Count
    target_model: Text
    vocab_size: Annotated[int, Meta(ge=1, le=MAX_VOCAB)]
    max_context: Annotated[int, Meta(ge=1, le=MAX_CONTEXT)]
    heartbeat_s: Annotated[float, Meta(gt=0, le=86_400)]
    """A link on which nothing arrived for three of these is dead."""
    software: Text = ""


class Refuse(Message, frozen=True, array_like=True, tag=33):
    """The handshake (or a Resume, then with its lease_id) is refused."""

    code: Code
    text: Text
    lease_id: Annotated[bytes, Meta(max_length=16)] = b""


class GrowthWishes(msgspec.Struct, frozen=True, array_like=True):
    """What the coordinator wishes of a node's growth in one session."""

    min_prob: Probability = 0.003
    look_ahead: Annotated[int, Meta(ge=1, le=1024)] = 24
    max_unverified: Annotated[int, Meta(ge=1, le=MAX_UNVERIFIED)] = 256
    """Live vertices allowed; raised but never lowered within a lease."""
    beam_width: Annotated[int, Meta(ge=0, le=256)] = 0
    """Vertices expanded per level; 0 leaves it to the node."""
    lockstep_levels: Annotated[int, Meta(ge=0, le=1024)] = 0
    """0: continuous drafting. Else lock-step rounds: one proposal, after this many levels below the
    root, for every verdict."""
    lockstep_vertices: Annotated[int, Meta(ge=0, le=MAX_PROPOSAL_VERTICES)] = 0
    """Most vertices of a lock-step proposal, best first; 0 for all."""
    is_proactive: bool = True
    """Lock-step only: grow on, without sending, while the verdict is awaited."""


class Open(Message, frozen=True, array_like=True, tag=34):
    """A session begins; `num_tokens` committed tokens follow in Prompt chunks.

    A resumed session is opened with `resumed` and no chunks; its first Verdict starts at the
    position that Resume named. A fresh one's first Verdict starts at num_tokens.
    For a resumed one num_tokens is the number of committed tokens, at least that position.
    """

    session_no: Ordinal
    lease_id: Lease
    num_tokens: Annotated[int, Meta(ge=1, le=MAX_CONTEXT)]
    noise_key: Key
    temperature: Annotated[float, Meta(ge=0, le=1000)]
    top_k: Count
    top_p: Probability
    min_p: Probability
    max_position: Position
    """No token stands at or beyond this absolute position."""
    role: Role
    wishes: GrowthWishes
    resumed: bool = False


class Prompt(Message, frozen=True, array_like=True, tag=35):
    """Committed tokens [offset, offset + n) of an opened session, 3 bytes each."""

    session_no: Ordinal
    offset: Position
    token_ids: Annotated[bytes, Meta(min_length=3, max_length=3 * PROMPT_CHUNK_TOKENS)]


class Verdict(Message, frozen=True, array_like=True, tag=36):
    """Newly committed tokens, however they came about.

    Args:
        round_no: number of the verification round; merged verdicts carry the last one.
        from_position: absolute position of the first of token_ids.
        token_ids: 3 bytes each; none where only a role or a restart is to be told.
        num_accepted: how many of them this node's tree earned.
        restart_tree_no: the node's tree with this number has ended; 0 for none.
    """

    session_no: Ordinal
    round_no: Count
    from_position: Position
    token_ids: Annotated[bytes, Meta(max_length=3 * MAX_VERDICT_TOKENS)]
    num_accepted: Annotated[int, Meta(ge=0, le=MAX_VERDICT_TOKENS)]
    role: Role = "active"
    restart_tree_no: Count = 0


class Tune(Message, frozen=True, array_like=True, tag=37):
    session_no: Ordinal
    wishes: GrowthWishes


class Receipt(Message, frozen=True, array_like=True, tag=38):
    """One signed receipt; `envelope` is opaque here (see identity/receipt.py)."""

    envelope: Annotated[bytes, Meta(min_length=1, max_length=4096)]


class Ping(Message, frozen=True, array_like=True, tag=39):
    nonce: Sequence64


class Drain(Message, frozen=True, array_like=True, tag=40):
    """The coordinator is about to stop; no new sessions will come."""

    reason: Text = ""


class Close(Message, frozen=True, array_like=True, tag=41):
    """A session ended.

    rest_s: for so long the node gets no other one, because its guesses do not pay here.
    """

    session_no: Ordinal
    reason: Text = ""
    rest_s: Seconds = 0.0


NodeMessage = Hello | Proposal | Pong | Capacity | Release | Resume | ReceiptRequest | Goodbye
CoordinatorMessage = (
    Welcome | Refuse | Open | Prompt | Verdict | Tune | Receipt | Ping | Drain | Close
)
