"""Whether the engine can take a session, and when that session will end."""

from dataclasses import dataclass

from coordinator.engine.messages import OpenSession, SessionFailed
from coordinator.engine.packing import Ending
from specedge_p2p.lm.ports import ModelInfo

OUT_OF_CACHE = "out_of_cache"


@dataclass(frozen=True, slots=True)
class Room:
    """What is left for one more session.

    Args:
        is_in_use: its number belongs to another session.
        num_places: sessions that may still be opened.
        num_cache_rows: of the whole cache; when all others give way, it is one session's.
    """

    is_in_use: bool
    num_places: int
    num_cache_rows: int


def refusal(message: OpenSession, info: ModelInfo, room: Room) -> SessionFailed | None:
    """Why a session cannot be served, None if it can."""
    num_tokens, max_position = len(message.token_ids), ending_of(message, info).max_position
    code, text = "", ""
    if room.is_in_use:
        code, text = "session_in_use", "the session number is in use"
    elif room.num_places < 1:
        code, text = "too_many_sessions", "as many sessions are open as the engine takes"
    elif not message.token_ids or not 0 < message.prompt_length <= num_tokens:
        code, text = "bad_prompt", "a session needs at least one prompt token"
    elif not 0 <= min(message.token_ids) <= max(message.token_ids) < info.vocab_size:
        code, text = "bad_prompt", f"token ids must lie in [0, {info.vocab_size})"
    elif num_tokens >= max_position:
        code, text = (
            "context_length_exceeded",
            f"{num_tokens} tokens leave no room for another one: the context holds "
            f"{info.max_context} and {message.max_tokens} new tokens were asked for",
        )
    elif max_position - 1 > room.num_cache_rows:
        code, text = (
            OUT_OF_CACHE,
            f"prompt and answer may need {max_position - 1} rows of cache and there are "
            f"{room.num_cache_rows}: ask for fewer tokens",
        )
    return SessionFailed(message.session, code, text) if code else None


def ending_of(message: OpenSession, info: ModelInfo) -> Ending:
    return Ending(
        max_position=min(message.prompt_length + message.max_tokens, info.max_context),
        eos_token_ids=frozenset() if message.ignore_eos else frozenset(info.eos_token_ids),
    )
