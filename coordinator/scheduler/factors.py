"""How far the probabilities of drafters can be believed, learned from every tree received.

What a drafter predicted for the token after the root is compared with what the target chose there,
whether its rows were verified or not, so a drafter is judged for free. Nothing here decides a
token: a lie costs the liar rows.
"""

from dataclasses import dataclass, field

from coordinator.engine.messages import SourceFactor
from coordinator.scheduler.recent import Recent
from coordinator.scheduler.voices import Voices
from specedge_p2p.names import PeerId

_KEPT = 0.97
_FADED = 0.998
_LEAST, _MOST = 0.005, 1.3
_BELIEF = 2.0
"""A drafter begins as if it had predicted this much and kept its word."""
_QUALITY_KEPT = 0.995
_QUALITY_BELIEF = 0.5
_QUALITY_WEIGHT = 8.0

NUM_TREES_ON_TRIAL = 8
"""Trees that a new drafter is scored on before it is believed in full."""
FACTOR_ON_TRIAL = 0.5
MAX_ROWS_ON_TRIAL = 8


@dataclass(slots=True)
class Factor:
    """Hits per prediction of one drafter, recent trees first."""

    num_trees: int = 0
    _hits: float = 0.0
    _predicted: float = 0.0

    @property
    def value(self) -> float:
        """What path probabilities are to be multiplied with, 0.005 to 1.3."""
        return min(_MOST, max(_LEAST, (_BELIEF + self._hits) / (_BELIEF + self._predicted)))

    @property
    def is_on_trial(self) -> bool:
        return self.num_trees < NUM_TREES_ON_TRIAL

    def observe(self, predicted: float, *, is_hit: bool) -> None:
        """A tree gave `predicted` to the tokens after its root, and one of them was chosen."""
        self._hits = _KEPT * self._hits + is_hit
        self._predicted = _KEPT * self._predicted + min(1.0, max(0.0, predicted))
        self.num_trees += 1

    def fade(self) -> None:
        """A step without a tree of it: what was seen counts a little less, and it gets a chance."""
        self._hits *= _FADED
        self._predicted *= _FADED


@dataclass(slots=True)
class Quality:
    """Share of the first levels of one draft model that had the target's choice."""

    number: int = 0
    voices: Voices = field(default_factory=lambda: Voices(_QUALITY_KEPT))

    @property
    def value(self) -> float:
        return self.voices.share(_QUALITY_BELIEF, _QUALITY_WEIGHT)


class Factors:
    """The factor of every node and the quality of every draft model.

    Args:
        max_keys: nodes, and draft models, that are remembered; the longest silent are forgotten
            first and are then on trial again.
    """

    def __init__(self, max_keys: int = 20_000) -> None:
        if max_keys < 1:
            raise ValueError("at least one node must be remembered")
        self._nodes: Recent[PeerId, Factor] = Recent(max_keys)
        self._drafts: Recent[bytes, Quality] = Recent(max_keys)
        self._num_drafts = 0

    def observe(self, peer_id: PeerId, fingerprint: bytes, predicted: float, is_hit: bool) -> None:
        """A tree of a node, made with the draft model of this fingerprint, was judged."""
        factor = self._nodes.entries.get(peer_id) or Factor()
        factor.observe(predicted, is_hit=is_hit)
        self._nodes.put(peer_id, factor)
        self._draft(fingerprint).voices.observe(peer_id, float(is_hit), 1.0)

    def observe_own(self, fingerprint: bytes, *, is_hit: bool) -> None:
        """A tree that the engine made with this draft model was judged."""
        self._draft(fingerprint).voices.observe_own(float(is_hit), 1.0)

    def source(self, number: int, peer_id: PeerId, fingerprint: bytes) -> SourceFactor:
        """What is believed of a node's trees, as source `number` of a session.

        Asked for every session of every step.
        """
        known = self._nodes.entries.get(peer_id) or Factor()
        draft = self._drafts.entries.get(fingerprint) or self._draft(fingerprint)
        factor, max_rows = known.value, 0
        if known.is_on_trial:
            factor, max_rows = min(FACTOR_ON_TRIAL, factor), MAX_ROWS_ON_TRIAL
        return SourceFactor(number, factor, draft.number, draft.value, max_rows)

    def quality(self, fingerprint: bytes) -> float:
        """Share of the draft model's first levels that have the target's choice."""
        known = self._drafts.entries.get(fingerprint)
        return _QUALITY_BELIEF if known is None else known.value

    def draft(self, fingerprint: bytes) -> int:
        """The draft model's number, from 1 on; see SourceFactor."""
        return self._draft(fingerprint).number

    def num_trees(self, peer_id: PeerId) -> int:
        """How many trees of the node were judged."""
        return self._node(peer_id).num_trees

    def _draft(self, fingerprint: bytes) -> Quality:
        known = self._drafts.entries.get(fingerprint)
        if known is None:
            self._num_drafts += 1
            known = Quality(self._num_drafts)
        self._drafts.put(fingerprint, known)
        return known

    def _node(self, peer_id: PeerId) -> Factor:
        return self._nodes.entries.get(peer_id) or Factor()
