"""Which coordinator to draft for, and with which model."""

from collections.abc import Sequence
from dataclasses import dataclass

from node.settings import AUTO
from specedge_p2p.identity.record import CoordinatorRecord


class NoFit(Exception):
    """No coordinator that was found can use this node; the text says why."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A coordinator that answered: its signed record, where, and how far away."""

    address: str
    record: CoordinatorRecord
    round_trip_s: float


def in_order(
    candidates: Sequence[Candidate], fingerprint: bytes | None = None
) -> tuple[Candidate, ...]:
    """The candidates that fit a tokenizer, best first.

    A full coordinator comes after all others; else near ones come first, and a busy one counts as
    up to twice as far away. Records that name no tokenizer are left to the handshake.
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
    return tuple(
        sorted(fitting, key=lambda c: (c.record.load >= 1, c.round_trip_s * (1 + c.record.load)))
    )


def draft_model_for(wanted: str, record: CoordinatorRecord) -> str:
    """The model to load: the one wanted, or the coordinator's first suggestion. Raises NoFit."""
    if wanted != AUTO:
        return wanted
    if not record.draft_models:
        raise NoFit("the coordinator suggests no draft model; name one with --draft-model")
    return record.draft_models[0]
