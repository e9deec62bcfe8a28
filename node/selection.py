"""Which coordinator to draft for, and with which model."""

from collections.abc import Sequence

from node.settings import AUTO
from specedge_p2p.errors import ClearError
from specedge_p2p.identity.record import CoordinatorRecord
from specedge_p2p.overlay.discovery import FoundCoordinator, peer_of

MAX_SUGGESTIONS = 3
"""Of a coordinator: each may have to be downloaded before it can be measured."""


class NoFit(ClearError):
    """No coordinator that was found can use this node; the text says why."""


def in_order(
    candidates: Sequence[FoundCoordinator],
    fingerprint: bytes | None = None,
    by_hand: Sequence[str] = (),
) -> tuple[FoundCoordinator, ...]:
    """The candidates that fit a tokenizer, best first.

    Those given by hand come first. A full coordinator comes after the others; else near ones come
    first, and a busy one counts as up to twice as far away. Records that name no tokenizer are left
    to the handshake.
    """
    fitting = [
        candidate
        for candidate in candidates
        if fingerprint is None
        or not candidate.record.tokenizer_fingerprints
        or fingerprint in candidate.record.tokenizer_fingerprints
    ]
    if candidates and not fitting:
        targets = sorted({t for c in candidates for t in c.record.target_models})
        raise NoFit(
            "the draft model's tokenizer does not fit any coordinator found"
            f" (they serve {', '.join(targets)})"
        )
    given = {peer_of(address) for address in by_hand}

    def distance(candidate: FoundCoordinator) -> tuple[bool, bool, float]:
        record = candidate.record
        is_far = record.peer_id not in given
        return is_far, record.load >= 1, candidate.round_trip_s * (1 + record.load)

    return tuple(sorted(fitting, key=distance))


def draft_models_for(wanted: Sequence[str], record: CoordinatorRecord) -> tuple[str, ...]:
    """The models to choose from: those wanted, with the coordinator's first suggestions for "auto".

    Raises NoFit.
    """
    names: list[str] = []
    for name in wanted:
        names += record.draft_models[:MAX_SUGGESTIONS] if name == AUTO else [name]
    if not names:
        raise NoFit("the coordinator suggests no draft model; name one with --draft-model")
    return tuple(dict.fromkeys(names))
