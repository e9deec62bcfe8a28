"""Coordinators that cannot use this node, remembered so that others are asked instead."""

from dataclasses import dataclass
from typing import TypeVar

from specedge_p2p.identity.record import CoordinatorRecord

UNFIT_S = 600.0
"""Then a coordinator is asked again: what was wrong there may have been put right."""
MAX_UNFIT = 256
"""More are not remembered: the one noted longest ago is asked again first."""

Problem = TypeVar("Problem", bound=Exception)


@dataclass(frozen=True, slots=True)
class _Unfit:
    record: CoordinatorRecord
    problem: Exception
    until_s: float


class UnfitCoordinators:
    """Each with the reason, for `UNFIT_S` or until its record offers something else."""

    def __init__(self) -> None:
        self._by_peer: dict[str, _Unfit] = {}

    def problem(self, record: CoordinatorRecord, now_s: float) -> Exception | None:
        """Why it is no use to ask this coordinator now; None where it may be asked."""
        unfit = self._by_peer.get(record.peer_id)
        if unfit is None or now_s >= unfit.until_s or not _offers_the_same(unfit.record, record):
            return None
        return unfit.problem

    def note(self, record: CoordinatorRecord, problem: Exception, now_s: float) -> bool:
        """Whether the reason is another than the last one."""
        last = self._by_peer.pop(record.peer_id, None)
        self._by_peer[record.peer_id] = _Unfit(record, without_frames(problem), now_s + UNFIT_S)
        while len(self._by_peer) > MAX_UNFIT:
            del self._by_peer[next(iter(self._by_peer))]
        return last is None or str(last.problem) != str(problem)


def without_frames(problem: Problem) -> Problem:
    """For keeping: the frames of a traceback, or of a cause's, may hold a whole model."""
    problem.__cause__ = problem.__context__ = None
    return problem.with_traceback(None)


def _offers_the_same(one: CoordinatorRecord, other: CoordinatorRecord) -> bool:
    """In what a node depends on; load and sequence change all the time."""
    return (
        one.target_models == other.target_models
        and one.tokenizer_fingerprints == other.tokenizer_fingerprints
        and one.draft_models == other.draft_models
    )
