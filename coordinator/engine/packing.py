"""From bound trees to the rows of one forward, and from its choices to new tokens. Pure.

Between rounds a sequence holds rows exactly for all committed tokens but the root. A tree goes into
the tail: slot 0 is the root, slot i is row i. What the verdict keeps becomes prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.engine.messages import TokenSource
from specedge_p2p.lm.ports import Rows, TokenIds
from specedge_p2p.tree.acceptance import accept
from specedge_p2p.tree.attention import ancestor_masks, pack_masks
from specedge_p2p.tree.binding import BoundRows


@dataclass(frozen=True, slots=True)
class Ending:
    """When a session ends.

    Args:
        max_position: no token stands at or beyond this absolute position.
        eos_token_ids: tokens that end it; empty when they are to be ignored.
    """

    max_position: int
    eos_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one forward decided for one session.

    Args:
        token_ids: new tokens, already cut at the session's end.
        sources: one per token.
        commit_slots: tail slots that become prefix: the root and the accepted path.
        finish: "stop", "length" or "" while it goes on.
    """

    token_ids: tuple[int, ...]
    sources: tuple[TokenSource, ...]
    commit_slots: tuple[int, ...]
    finish: str


def prefill_rows(
    session: int, token_ids: Sequence[int], first_position: int, is_last: bool
) -> Rows:
    """A chunk of known tokens; the choice after the last one is wanted if it is the last chunk."""
    return Rows(
        sequence=session,
        token_ids=np.asarray(token_ids, dtype=np.int32),
        positions=_positions(first_position, len(token_ids)),
        visible=None,
        num_outputs=1 if is_last else 0,
    )


def tree_rows(session: int, root_position: int, bound: BoundRows) -> Rows:
    """Root and tree as tail rows; a root alone goes straight into the prefix."""
    num_rows = len(bound)
    positions = [root_position + depth for depth in bound.depths]
    return Rows(
        sequence=session,
        token_ids=np.array(bound.token_ids, np.int32),
        positions=np.array(positions, np.int32),
        visible=pack_masks(ancestor_masks(bound.parents), num_rows) if num_rows > 1 else None,
        num_outputs=num_rows,
    )


def plain(bound: BoundRows) -> BoundRows:
    """The root's row alone."""
    return BoundRows(
        token_ids=bound.token_ids[:1],
        parents=bound.parents[:1],
        depths=bound.depths[:1],
        probs=bound.probs[:1],
        sources=bound.sources[:1],
        seconds=bound.seconds[:1],
        is_ngram=bound.is_ngram[:1],
        covered=bound.covered[:1],
        is_own=bound.is_own[:1],
    )


def judge(bound: BoundRows, choices: TokenIds, num_committed: int, ending: Ending) -> Outcome:
    """Accept what agrees with the target's choices, and cut it at the session's end."""
    accepted = accept(bound.parents, bound.token_ids, choices.tolist())
    tokens = [bound.token_ids[row] for row in accepted.path]
    sources = [_token_source(bound, row) for row in accepted.path]
    tokens.append(accepted.bonus_token)
    sources.append(TokenSource())
    num_kept, finish = cut(tokens, num_committed, ending)
    return Outcome(
        token_ids=tuple(tokens[:num_kept]),
        sources=tuple(sources[:num_kept]),
        commit_slots=(0, *accepted.path),
        finish=finish,
    )


def judge_first(choice: int, num_committed: int, ending: Ending) -> Outcome:
    """The outcome of the last prefill chunk: one new token, nobody's guess."""
    _, finish = cut([choice], num_committed, ending)
    return Outcome((choice,), (TokenSource(),), (), finish)


def cut(token_ids: Sequence[int], num_committed: int, ending: Ending) -> tuple[int, str]:
    """How many new tokens stand, and why the session ends with them ("" if it does not).

    At least one position must be free: num_committed < ending.max_position.
    """
    room = ending.max_position - num_committed
    for i, token in enumerate(token_ids[:room]):
        if token in ending.eos_token_ids:
            return i + 1, "stop"
    if len(token_ids) >= room:
        return room, "length"
    return len(token_ids), ""


def _token_source(bound: BoundRows, row: int) -> TokenSource:
    return TokenSource(
        bound.sources[row], bound.seconds[row], bound.is_ngram[row], bound.is_own[row]
    )


def _positions(first: int, num: int) -> TokenIds:
    return np.arange(first, first + num, dtype=np.int32)
