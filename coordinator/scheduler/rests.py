"""Which nodes rest for a while: those whose guesses do not pay for hearing them.

What a node sends has to be decrypted, decoded, kept as a tree and answered, whether any of it comes
true or not: with 24 sessions that is a fifth of what the coordinator's process does in a step of an
h200-class engine, and there it is this process that sets the limit. So a node must have guessed a
twentieth of the tokens of its sessions. What it brought is compared with that by Page's cumulative
sum (Biometrika 41, 1954): a node that brings nothing is found out after 300 tokens, one that brings
2 % after some 500, and one that brings 10 % practically never.

It then has no session for a while, so its own machine saves the power too, and is tried again; each
time in vain the rest is twice as long. Only what the target chose counts here, and only the node's
own record, so nobody can talk another one into a rest.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

LEAST_SHARE = 0.05
"""Of the tokens of its sessions, this share must have been guessed by the node."""
MOST_SHORT = 15.0
"""A node that is short of that by so many tokens rests."""
TRIED_AGAIN_SHORT = 7.5
"""With so many it begins again: what was seen before the rest is half forgotten."""
FIRST_REST_S, LONGEST_REST_S = 10.0, 640.0
MAX_KEYS = 16_384
"""Nodes remembered; the longest unheard of are forgotten first."""


@dataclass(slots=True)
class _Record:
    short: float = 0.0
    """Tokens that it has brought too few; 0 once it has made up for them."""
    until_s: float = 0.0
    next_rest_s: float = FIRST_REST_S


@dataclass(slots=True)
class Rests(Generic[Key]):
    """Per node: how much it is short of what it must bring, and until when it rests."""

    _known: dict[Key, _Record] = field(default_factory=dict)

    def observe(self, key: Key, num_accepted: int, num_committed: int, now_s: float) -> None:
        """A step of a session for which the node drafts.

        Args:
            key: the node.
            num_accepted: tokens that were the node's.
            num_committed: all tokens that the step committed.
            now_s: what comes while the node rests was on its way before, and does not count.
        """
        record = self._known.pop(key, None) or _Record()
        self._known[key] = record  # most recently heard of last
        if len(self._known) > MAX_KEYS:
            del self._known[next(iter(self._known))]
        if now_s < record.until_s:
            return
        record.short = max(0.0, record.short + LEAST_SHARE * num_committed - num_accepted)
        if record.short == 0.0:
            record.next_rest_s = FIRST_REST_S
        elif record.short >= MOST_SHORT:
            record.short = TRIED_AGAIN_SHORT
            record.until_s = now_s + record.next_rest_s
            record.next_rest_s = min(LONGEST_REST_S, 2 * record.next_rest_s)

    def rest_s(self, key: Key, now_s: float) -> float:
        """For how long the node still rests; 0 where it does not."""
        record = self._known.get(key)
        return 0.0 if record is None else max(0.0, record.until_s - now_s)
