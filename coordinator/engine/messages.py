"""What the coordinator and its engine say to each other; frozen, the same inline and by socket."""

import msgspec

from specedge_p2p.lm.ports import SamplingParams

NGRAM_ORDERS = (4, 3, 2)


class EngineMessage(msgspec.Struct, frozen=True, array_like=True, tag_field="t"):
    """Base of all engine messages."""


# --- coordinator to engine -----------------------------------------------------------------------


class OpenSession(EngineMessage, frozen=True, array_like=True, tag=1):
    """Take a session, fresh or after a crash: prefill token_ids, then decode.

    Args:
        session: number chosen by the coordinator, never reused for this engine process.
        token_ids: all committed tokens, prompt first.
        prompt_length: how many of them are the prompt.
        max_tokens: the session ends when this many tokens follow the prompt.
    """

    session: int
    token_ids: list[int]
    prompt_length: int
    max_tokens: int
    sampling: SamplingParams
    noise_key: bytes
    ignore_eos: bool = False


class CloseSession(EngineMessage, frozen=True, array_like=True, tag=2):
    session: int


class AddVertices(EngineMessage, frozen=True, array_like=True, tag=3):
    """The checked columns of one proposal, passed on as they came (see wire Proposal)."""

    session: int
    source: int
    """Number of the node's assignment, never reused for this engine process."""
    tree_no: int
    first_index: int
    base_position: int
    token_ids: bytes
    parents: bytes
    log_probs: bytes


class DropSource(EngineMessage, frozen=True, array_like=True, tag=4):
    """Forget a node's tree in a session."""

    session: int
    source: int


class SourceFactor(msgspec.Struct, frozen=True, array_like=True):
    """By how much a source's path probabilities are scaled."""

    source: int
    factor: float


class StepEntry(msgspec.Struct, frozen=True, array_like=True):
    """One session of a verification batch: never a root or a tree, both are bound at the start."""

    session: int
    max_rows: int
    """Most tree rows, the root's row not counted."""
    sources: list[SourceFactor] = []


class VerificationBatch(EngineMessage, frozen=True, array_like=True, tag=5):
    """One step. Entries of unknown or ended sessions are no-ops.

    Args:
        row_price: expected tokens that one more row must bring.
        ngram_hit_rates: probability that the next token of an n-gram guess is right, per order in
            NGRAM_ORDERS. Without any the engine does not guess.
        prefill_tokens: most prompt tokens that this step may prefill over all its sessions.
    """

    step_no: int
    entries: list[StepEntry]
    row_price: float
    ngram_hit_rates: list[float]
    prefill_tokens: int


# --- engine to coordinator -----------------------------------------------------------------------


class Ready(EngineMessage, frozen=True, array_like=True, tag=32):
    """The model is loaded and measured.

    step_time_s and row_time_s: fitted time of a step with one row, and of each further row.
    """

    model: str
    vocab_size: int
    max_context: int
    eos_token_ids: list[int]
    dtype: str
    fingerprint: bytes
    step_time_s: float
    row_time_s: float


class TokenSource(msgspec.Struct, frozen=True, array_like=True):
    """Who guessed a committed token. All empty: the target's own (bonus) token.

    Args:
        source: the source whose vertex arrived first, 0 for none.
        second: another source that had it too, 0 for none.
        ngram: the n-gram guess had it too.
    """

    source: int = 0
    second: int = 0
    ngram: bool = False


class EntryResult(msgspec.Struct, frozen=True, array_like=True):
    """What one step did for one session.

    Args:
        token_ids: newly decided tokens, empty while the prompt is still being prefilled.
        sources: one per token.
        num_rows: tree rows verified; num_source_rows: those of them that a node had proposed.
        finish: "stop" (end-of-sequence token), "length" or "" while it goes on.
    """

    session: int
    from_position: int
    token_ids: list[int]
    sources: list[TokenSource]
    num_rows: int
    num_source_rows: int
    ngram_order: int = 0
    """Order of the n-gram guess that this step judged, with rows or without; 0 for none."""
    ngram_hit: bool = False
    """The first token of the n-gram guess was right."""
    finish: str = ""


class StepDone(EngineMessage, frozen=True, array_like=True, tag=33):
    """Times are on the engine's monotonic clock; bind_s is the gap before the forward."""

    step_no: int
    started_s: float
    ended_s: float
    bind_s: float
    num_forward_rows: int
    results: list[EntryResult]


class SessionFailed(EngineMessage, frozen=True, array_like=True, tag=34):
    """The engine cannot serve this session; others go on."""

    session: int
    code: str
    text: str


class EngineDied(EngineMessage, frozen=True, array_like=True, tag=35):
    """Made by the client, not sent: all sessions and queued steps are gone; Ready may follow."""

    text: str


class LoadFailed(EngineMessage, frozen=True, array_like=True, tag=36):
    """Between an engine process and its client only: the model cannot be loaded, and why."""

    text: str


ToEngine = OpenSession | CloseSession | AddVertices | DropSource | VerificationBatch
FromEngine = Ready | StepDone | SessionFailed | EngineDied
