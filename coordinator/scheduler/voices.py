"""What a draft model is worth, by those who say that they draft with it."""

from coordinator.scheduler.recent import Recent
from specedge_p2p.names import PeerId

MAX_VOICES = 256


class Voices:
    """What came of what was expected, as a mean over nodes, each weighed by what came of it.

    Which model a node drafts with is its own word, and one that is never right says nothing of it.
    The engine knows what it drafts with: what it expected weighs, whether it came or not.

    Args:
        kept: what an observation still weighs at the node's next one.
    """

    def __init__(self, kept: float) -> None:
        self._kept = kept
        self._voices: Recent[PeerId, tuple[float, float]] = Recent(MAX_VOICES)
        """(came, expected) of each."""
        self._own = (0.0, 0.0)
        self._weight = 0.0
        self._weighed = 0.0

    def observe(self, peer_id: PeerId, came: float, expected: float) -> None:
        """So much was expected, above 0, and so much came."""
        known = self._voices.entries.get(peer_id, (0.0, 0.0))
        voice = self._after(known, came, expected)
        self._count(*known, -1.0)
        self._count(*voice, 1.0)
        for _, gone in self._voices.put(peer_id, voice):
            self._count(*gone, -1.0)

    def observe_own(self, came: float, expected: float) -> None:
        """As `observe`, of the engine itself."""
        self._own = self._after(self._own, came, expected)

    def share(self, belief: float, belief_weight: float) -> float:
        """What came as a share of what was expected.

        Args:
            belief: the share before anything was seen.
            belief_weight: what it weighs, in what came.
        """
        # Sums of what was added and taken away again can end a little below nothing.
        weighed, weight = max(0.0, self._weighed), max(0.0, self._weight)
        own_came, own_expected = self._own
        came = belief * belief_weight + weighed + own_came
        return came / (belief_weight + weight + own_expected)

    def _after(
        self, known: tuple[float, float], came: float, expected: float
    ) -> tuple[float, float]:
        return self._kept * known[0] + came, self._kept * known[1] + expected

    def _count(self, came: float, expected: float, sign: float) -> None:
        if came:
            self._weight += sign * came
            self._weighed += sign * came * came / expected
