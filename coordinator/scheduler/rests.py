"""Which nodes rest for a while: those whose guesses do not pay for hearing them.

What a node sends has to be decrypted, decoded, kept as a tree and answered, whether any of it comes
true or not, and where steps are short it is the coordinator's process that sets the limit. So of
the tokens that the engine had not guessed itself, a twentieth must have been the node's, or that of
whoever drafts beside it: the steps of a quick node leave a slow one behind, which may be good
enough by itself.

A node is judged by at least ten seconds in which it was busy and 600 such tokens, so neither a link
that hangs for a moment nor a hard text sends it away. It then has no session for a while, and after
that one at a time until its own guesses were enough; each time in vain the rest is twice as long.
Only what the target chose counts here. A node that comes under a new name is judged anew: what it
can take that way is one judgement's time.
"""

from dataclasses import dataclass, field
from typing import Generic

from coordinator.scheduler.recent import Key, Recent

LEAST_SHARE = 0.05
"""Of the tokens that count, this share must have been guessed by nodes."""
JUDGED_S, JUDGED_TOKENS = 10.0, 600
"""A judgement takes so long, and so many tokens. After a pause of that length it begins anew."""
FIRST_REST_S, LONGEST_REST_S = 10.0, 640.0
MAX_KEYS = 16_384
"""Nodes remembered; the longest unheard of are forgotten first."""


@dataclass(slots=True)
class _Record:
    since_s: float
    """When the judgement began that is under way; it may lie ahead, at the end of a rest."""
    heard_s: float
    num_own: int = 0
    num_accepted: int = 0
    num_counted: int = 0
    next_rest_s: float = FIRST_REST_S


@dataclass(slots=True)
class Rests(Generic[Key]):
    """Per node: what it brought since it was last judged, and until when it rests."""

    _known: Recent[Key, _Record] = field(default_factory=lambda: Recent(MAX_KEYS))

    def observe(
        self, key: Key, num_own: int, num_accepted: int, num_counted: int, now_s: float
    ) -> None:
        """A step of a session for which the node drafts.

        Args:
            key: the node.
            num_own: tokens that it had guessed.
            num_accepted: tokens that it or another node of the session had guessed.
            num_counted: all tokens that they could have guessed, those included.
            now_s: what comes while the node rests was on its way before, and does not count.
        """
        if not num_counted:
            return
        record = self._known.entries.get(key) or _Record(now_s, now_s)
        self._known.put(key, record)
        if now_s < record.since_s:
            return
        if not record.num_counted or now_s > record.heard_s + JUDGED_S:
            record.since_s = now_s
            record.num_own = record.num_accepted = record.num_counted = 0
        record.heard_s = now_s
        record.num_own += num_own
        record.num_accepted += num_accepted
        record.num_counted += num_counted
        if now_s < record.since_s + JUDGED_S or record.num_counted < JUDGED_TOKENS:
            return
        least = LEAST_SHARE * record.num_counted
        if record.num_accepted < least:
            record.since_s = now_s + record.next_rest_s
            record.next_rest_s = min(LONGEST_REST_S, 2 * record.next_rest_s)
        elif record.num_own >= least:
            record.next_rest_s = FIRST_REST_S
        record.num_counted = 0  # the next token begins another judgement

    def rest_s(self, key: Key, now_s: float) -> float:
        """For how long the node still rests; 0 where it does not."""
        record = self._known.entries.get(key)
        return 0.0 if record is None else max(0.0, record.since_s - now_s)

    def is_on_probation(self, key: Key) -> bool:
        """Whether it has rested, and has not brought enough since."""
        record = self._known.entries.get(key)
        return record is not None and record.next_rest_s > FIRST_REST_S
