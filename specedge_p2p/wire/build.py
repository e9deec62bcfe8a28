"""Builders of messages that belong together, and the merging of verdicts that wait to be sent."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from specedge_p2p.wire.columns import pack_tokens
from specedge_p2p.wire.messages import (
    MAX_VERDICT_TOKENS,
    PROMPT_CHUNK_TOKENS,
    Open,
    Prompt,
    Verdict,
)

TokenSequence = Sequence[int] | npt.NDArray[np.integer]


def open_messages(opened: Open, token_ids: TokenSequence) -> tuple[Open | Prompt, ...]:
    """Open and the chunks of the prompt; each may go in a frame of its own, between verdicts.

    Args:
        opened: not resumed; its num_tokens is set here.
        token_ids: all committed tokens, prompt first.
    """
    count = len(token_ids)
    chunks = tuple(
        Prompt(opened.session_no, at, pack_tokens(token_ids[at : at + PROMPT_CHUNK_TOKENS]))
        for at in range(0, count, PROMPT_CHUNK_TOKENS)
    )
    return (msgspec.structs.replace(opened, num_tokens=count, resumed=False), *chunks)


def split_verdict(verdict: Verdict, token_ids: TokenSequence) -> tuple[Verdict, ...]:
    """A verdict with these tokens as messages of legal size: what a node that was away missed.

    num_accepted and restart_tree_no go with the first of them.
    """
    first, *rest = range(0, max(len(token_ids), 1), MAX_VERDICT_TOKENS)
    messages = [_slice(verdict, token_ids, first)]
    plain = msgspec.structs.replace(verdict, num_accepted=0, restart_tree_no=0)
    messages += [_slice(plain, token_ids, offset) for offset in rest]
    return tuple(messages)


def merge_verdicts(first: Verdict, second: Verdict) -> Verdict | None:
    """Two unsent verdicts of one session as one; None when one message cannot hold both.

    Raises ValueError when the second does not follow the first.
    """
    count = len(first.token_ids) // 3
    follows = first.from_position + count == second.from_position
    if first.session_no != second.session_no or not follows:
        raise ValueError("only verdicts that follow each other can be merged")
    if count + len(second.token_ids) // 3 > MAX_VERDICT_TOKENS:
        return None
    return Verdict(
        session_no=first.session_no,
        round_no=second.round_no,
        from_position=first.from_position,
        token_ids=first.token_ids + second.token_ids,
        num_accepted=first.num_accepted + second.num_accepted,
        role=second.role,
        # Trees are numbered upwards: the end of a later one says enough about an earlier one.
        restart_tree_no=max(first.restart_tree_no, second.restart_tree_no),
    )


def _slice(verdict: Verdict, token_ids: TokenSequence, offset: int) -> Verdict:
    return msgspec.structs.replace(
        verdict,
        from_position=verdict.from_position + offset,
        token_ids=pack_tokens(token_ids[offset : offset + MAX_VERDICT_TOKENS]),
    )
