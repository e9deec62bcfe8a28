"""Whether an emulated engine kept its times, over all engine processes of this coordinator."""

from coordinator.engine.messages import StepDone
from specedge_p2p.views import PaddingView

_NOTHING = PaddingView()


class PaddingTotals:
    """Sums the tallies of engine processes, each of which counts from 0."""

    def __init__(self) -> None:
        self._before = _NOTHING
        """Of the processes that are gone."""
        self._latest = _NOTHING

    @property
    def view(self) -> PaddingView:
        return _sum(self._before, self._latest)

    def add(self, step: StepDone) -> None:
        if step.num_padded < self._latest.num_forwards:
            self._before = self.view
        self._latest = PaddingView(step.num_padded, step.num_late, step.used_s, step.padded_s)


def _sum(one: PaddingView, other: PaddingView) -> PaddingView:
    return PaddingView(
        num_forwards=one.num_forwards + other.num_forwards,
        num_late=one.num_late + other.num_late,
        used_s=one.used_s + other.used_s,
        padded_s=one.padded_s + other.padded_s,
    )
