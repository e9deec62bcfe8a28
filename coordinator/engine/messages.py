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
        prefix_salt: sessions with the same one may share the rows of equal beginnings.
    """

    session: int
    token_ids: list[int]
    prompt_length: int
    max_tokens: int
    sampling: SamplingParams
    noise_key: bytes
    ignore_eos: bool = False
    prefix_salt: str = ""


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
    """What is believed of a source's probabilities.

    Args:
        factor: what its path probabilities are scaled with.
        draft: number of its draft model; sources with the same one are merged by the larger
            probability, different ones by the rule of `tree/merging.py`.
        quality: share of first guesses of this draft model that are right; the larger is believed.
        max_rows: most rows of a session that only such sources draft for; 0 for no such bound.
    """

    source: int
    factor: float
    draft: int = 0
    quality: float = 0.0
    max_rows: int = 0


class StepEntry(msgspec.Struct, frozen=True, array_like=True):
    """One session of a verification batch: never a root or a tree, both are bound at the start."""

    session: int
    max_rows: int
    """Most tree rows, the root's row not counted."""
    sources: list[SourceFactor] = []
    must: bool = False
    """It has waited as long as it may: where the step is capped it goes before all others."""


class LevelTerms(msgspec.Struct, frozen=True, array_like=True):
    """What a level of the engine's own draft model costs, and what it must bring.

    Args:
        level_time_s, level_row_time_s: a level with one row, and each further row.
        row_time_s: each further row of the step that verifies what the level found.
        tokens_per_s: committed tokens per second of engine time, the price of time.
        max_levels: most levels in one step.
        width: most vertices of one session that a level expands.
        factor: what the draft model's path probabilities are scaled with.
        worth: tokens that levels brought lately, per token expected of them.
        is_fixed: grow max_levels whatever they bring; for measuring fixed trees.
        draft, quality: see SourceFactor.
    """

    level_time_s: float
    level_row_time_s: float
    row_time_s: float
    tokens_per_s: float
    max_levels: int = 3
    width: int = 4
    factor: float = 1.0
    worth: float = 1.0
    is_fixed: bool = False
    draft: int = 0
    quality: float = 0.0


class VerificationBatch(EngineMessage, frozen=True, array_like=True, tag=5):
    """One step. Entries of unknown or ended sessions are no-ops.

    Args:
        row_price: expected tokens that one more row must bring.
        ngram_hit_rates: probability that the next token of an n-gram guess is right, per order in
            NGRAM_ORDERS. Without any the engine does not guess.
        prefill_tokens: most prompt tokens that this step may prefill over all its sessions.
        max_sessions: most sessions with a root in this step, 0 for all entries. The engine takes
            those that `must`, in the order of the entries, then those with rows to verify, then the
            others; of both whoever was verified longest ago first, and only those who were verified
            in the same step in the order of the entries.
        levels: None where the engine shall not draft.
    """

    step_no: int
    entries: list[StepEntry]
    row_price: float
    ngram_hit_rates: list[float]
    prefill_tokens: int
    max_sessions: int = 0
    levels: LevelTerms | None = None


# --- engine to coordinator -----------------------------------------------------------------------


class Ready(EngineMessage, frozen=True, array_like=True, tag=32):
    """The model is loaded and measured.

    step_time_s and row_time_s: fitted time of a step with one row, and of each further row.
    level_time_s and level_row_time_s: the same of a level of the engine's own draft model; 0
        without one.
    draft_fingerprint: of that model, empty without one.
    """

    model: str
    vocab_size: int
    max_context: int
    eos_token_ids: list[int]
    dtype: str
    fingerprint: bytes
    step_time_s: float
    row_time_s: float
    level_time_s: float = 0.0
    level_row_time_s: float = 0.0
    draft_fingerprint: bytes = b""


class SourceSeen(msgspec.Struct, frozen=True, array_like=True):
    """How a source's first level fared against the target's choice after the root.

    Scored for every full tree with at least one child of the root, taken into the step or not.

    Args:
        source: 0 for the engine's own draft model.
        predicted: sum of the (unscaled) probabilities of the root's children.
        is_hit: one of them was the target's choice.
    """

    source: int
    predicted: float
    is_hit: bool


class TokenSource(msgspec.Struct, frozen=True, array_like=True):
    """Who guessed a committed token. All empty: the target's own (bonus) token.

    Args:
        source: the source whose vertex arrived first, 0 for none.
        second: another source that had it too, 0 for none.
        ngram: the n-gram guess had it too.
        own: the engine's own draft model had it too.
    """

    source: int = 0
    second: int = 0
    ngram: bool = False
    own: bool = False


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
    num_own_rows: int = 0
    """Tree rows that only the engine's own draft model had proposed."""
    seen: list[SourceSeen] = []


class Preempted(msgspec.Struct, frozen=True, array_like=True):
    """A session whose rows had to give way; it is prefilled again from its committed tokens."""

    session: int
    num_tokens: int
    """Those tokens."""


class StepDone(EngineMessage, frozen=True, array_like=True, tag=33):
    """Times are on the engine's monotonic clock; bind_s is the gap before the forward.

    Args:
        num_forward_rows: rows of the target's forward, prompt tokens included.
        num_prefill_rows: prompt tokens among them.
        num_context_rows: cached rows of all sessions in the forward.
        num_levels, num_level_rows, level_s: the engine's own drafting in this step.
        level_mass: tokens that were expected of it, before LevelTerms.worth.
        num_padded, num_late, used_s, padded_s: the tally of an emulated device since this engine
            was ready (see lm/emulated.py); 0 for a real one.
        num_reused_rows: rows of prompts that were shared instead of computed.
        preempted: sessions that lost their rows to others in this step.
    """

    step_no: int
    started_s: float
    ended_s: float
    bind_s: float
    num_forward_rows: int
    results: list[EntryResult]
    num_prefill_rows: int = 0
    num_context_rows: int = 0
    num_levels: int = 0
    num_level_rows: int = 0
    level_s: float = 0.0
    level_mass: float = 0.0
    num_padded: int = 0
    num_late: int = 0
    used_s: float = 0.0
    padded_s: float = 0.0
    num_reused_rows: int = 0
    preempted: list[Preempted] = []


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
