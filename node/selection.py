"""Which coordinator to draft for, and with which model."""

import re
from collections.abc import Sequence

from node.settings import AUTO
from specedge_p2p.errors import ClearError
from specedge_p2p.identity.record import CoordinatorRecord
from specedge_p2p.overlay.discovery import FoundCoordinator, peer_of

MAX_SUGGESTIONS = 3
"""Of a coordinator: each may have to be downloaded before it can be measured."""
_PART = r"\w(?:(?:[\w-]|\.(?!\.)){0,94}\w)?"
_HUB_NAME = re.compile(rf"(?!.*--)(?!.*\.git$){_PART}(?:/{_PART})?", re.ASCII)
"""As the hub allows them, and those of the demo models."""


class NoFit(ClearError):
    """A coordinator cannot use this node; the text says why."""


def in_order(
    candidates: Sequence[FoundCoordinator], by_hand: Sequence[str] = ()
) -> tuple[FoundCoordinator, ...]:
    """The candidates, best first.

    Those given by hand come first. A full coordinator comes after the others; else near ones come
    first, and a busy one counts as up to twice as far away.
    """
    given = {peer_of(address) for address in by_hand}

    def distance(candidate: FoundCoordinator) -> tuple[bool, bool, float]:
        record = candidate.record
        is_far = record.peer_id not in given
        return is_far, record.load >= 1, candidate.round_trip_s * (1 + record.load)

    return tuple(sorted(candidates, key=distance))


def check_tokenizer(record: CoordinatorRecord, fingerprint: bytes) -> None:
    """Raises NoFit. A record that names no tokenizer is left to the handshake."""
    if record.tokenizer_fingerprints and fingerprint not in record.tokenizer_fingerprints:
        raise NoFit(
            "the draft model's tokenizer does not fit the coordinator's target "
            + ", ".join(record.target_models)
        )


def draft_models_for(wanted: Sequence[str], record: CoordinatorRecord) -> tuple[str, ...]:
    """The models to choose from: those wanted, with the coordinator's first suggestions for "auto".

    What a stranger suggests is a name on the hub, never a folder of this machine. Raises NoFit.
    """
    suggested = [name for name in record.draft_models if _HUB_NAME.fullmatch(name)]
    names: list[str] = []
    for name in wanted:
        names += suggested[:MAX_SUGGESTIONS] if name == AUTO else [name]
    if not names:
        raise NoFit("the coordinator suggests no draft model; name one with --draft-model")
    return tuple(dict.fromkeys(names))
