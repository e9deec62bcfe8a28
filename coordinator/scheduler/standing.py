"""What nodes brought so far, beside what was predicted of them; claims count for nothing here."""

from dataclasses import dataclass, field
from typing import Generic

from coordinator.scheduler.recent import Key, Recent
from coordinator.scheduler.voices import Voices
from specedge_p2p.names import PeerId

MAX_KEYS = 16_384
"""Nodes remembered; the longest unheard of are forgotten first."""
MEMORY = 0.99
"""What an observation still weighs one round later."""
BELIEF_ROUNDS = 50.0
"""The prediction weighs as much as this many rounds."""
LEAST_SKILL, MOST_SKILL = 0.02, 4.0
LEVEL_MEMORY = 0.9998
BELIEF_LEVELS = 300.0
"""One stall among fewer levels than this is an accident."""


@dataclass(slots=True)
class _Standing:
    weight: float = 0.0
    accepted: float = 0.0
    predicted: float = 0.0
    levels: float = 0.0
    stalls: float = 0.0


@dataclass(slots=True)
class Standings(Generic[Key]):
    """Per node: tokens brought against tokens predicted, and stalled levels.

    `common` is what all nodes together brought as a share of what was predicted: text that is hard
    to guess is no fault of a node.
    """

    _known: Recent[Key, _Standing] = field(default_factory=lambda: Recent(MAX_KEYS))
    _accepted: float = 0.0
    _predicted: float = 0.0

    @property
    def common(self) -> float:
        return (self._accepted + BELIEF_ROUNDS) / (self._predicted + BELIEF_ROUNDS)

    def observe_round(self, key: Key, num_accepted: int, predicted: float) -> None:
        """A step of a session for which the node drafts.

        Args:
            key: the node.
            num_accepted: tokens that were the node's.
            predicted: tokens that were predicted of it.
        """
        standing = self._standing(key)
        standing.weight = MEMORY * standing.weight + 1.0
        standing.accepted = MEMORY * standing.accepted + num_accepted
        standing.predicted = MEMORY * standing.predicted + predicted
        kept = 1.0 - (1.0 - MEMORY) / 10  # all nodes together are remembered for longer
        self._accepted = kept * self._accepted + num_accepted
        self._predicted = kept * self._predicted + predicted

    def observe_level(self, key: Key, *, is_stalled: bool) -> None:
        standing = self._standing(key)
        standing.levels = LEVEL_MEMORY * standing.levels + 1.0
        standing.stalls = LEVEL_MEMORY * standing.stalls + is_stalled

    def skill(self, key: Key, believed: float = 1.0) -> float:
        """What the node brings, as a share of what is predicted.

        Args:
            key: the node.
            believed: what is believed before anything was seen of it.
        """
        standing = self._known.entries.get(key)
        if standing is None or standing.predicted <= 0.0:
            return believed
        belief = BELIEF_ROUNDS * standing.predicted / standing.weight
        due = self.common * (standing.predicted + belief)
        share = (standing.accepted + believed * self.common * belief) / due
        return min(MOST_SKILL, max(LEAST_SKILL, share))

    def stall_share(self, key: Key) -> float:
        """Share of the node's levels that stalled."""
        standing = self._known.entries.get(key)
        return 0.0 if standing is None else standing.stalls / (standing.levels + BELIEF_LEVELS)

    def _standing(self, key: Key) -> _Standing:
        standing = self._known.entries.get(key) or _Standing()
        self._known.put(key, standing)
        return standing


class DraftStandings:
    """Per draft model, by its fingerprint: what the nodes that say they have it brought."""

    def __init__(self) -> None:
        self._known: Recent[bytes, Voices] = Recent(MAX_KEYS)

    def observe_round(
        self, fingerprint: bytes, peer_id: PeerId, num_accepted: int, predicted: float
    ) -> None:
        """As in Standings, of a node that says it has this draft model."""
        # Little is predicted of who claims to be slow; it shall not be worth much for that.
        expected = max(predicted, num_accepted / MOST_SKILL)
        if expected > 0.0:
            voices = self._known.entries.get(fingerprint) or Voices(MEMORY)
            voices.observe(peer_id, num_accepted, expected)
            self._known.put(fingerprint, voices)

    def skill(self, fingerprint: bytes, common: float) -> float:
        """What to believe of a node of which nothing was seen; `common` is that of all nodes."""
        voices = self._known.entries.get(fingerprint)
        if voices is None:
            return 1.0
        share = voices.share(common, BELIEF_ROUNDS) / common
        return min(MOST_SKILL, max(LEAST_SKILL, share))
