"""Which draft model a node takes for a target: that with the largest predicted gain.

A larger model guesses better and takes longer; how much longer it may take depends on the engine's
step. So the choice needs both ends: the share of first guesses that are right, measured on the
target's own tokens, and the level time, measured here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from specedge_p2p.gain import break_even_level_s, predicted_gain

NOTHING = 0.005
"""Tokens a step; people are shown 0.00 for less, and nobody would notice it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A draft model on this machine.

    Args:
        name: of the model.
        acceptance: share of first guesses of the sample that are right.
        level_time_s: one level with one session.
    """

    name: str
    acceptance: float
    level_time_s: float


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a draft model is weighed in.

    Args:
        target_model: name of the target.
        step_time_s: one step of its engine.
        round_trip_s: to the coordinator.
    """

    target_model: str
    step_time_s: float
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Args:
        measured: the draft model.
        gain: predicted tokens that it adds to a step of one session.
        break_even_s: the level time up to which it would beat the best of the others; 0 where it
            cannot, None where there is no other.
    """

    measured: Measured
    gain: float
    break_even_s: float | None


@dataclass(frozen=True, slots=True)
class Choice:
    """All candidates, best first."""

    rows: tuple[Row, ...]
    surroundings: Surroundings

    @property
    def best(self) -> Measured:
        return self.rows[0].measured

    @property
    def why(self) -> str:
        """One sentence for people."""
        best, around = self.rows[0], self.surroundings
        if best.gain < NOTHING:
            return f"drafting does not pay here: {_why_nothing(best.measured, around)}"
        text = (
            f"{best.measured.name} adds most for {around.target_model}: {best.gain:.2f} tokens to"
            f" each step of {around.step_time_s * 1000:.1f} ms, {around.round_trip_s * 1000:.0f} ms"
            " away"
        )
        if len(self.rows) > 1:
            second = self.rows[1]
            text += f"; next is {second.measured.name} with {second.gain:.2f}"
        return text


def choose(candidates: Sequence[Measured], around: Surroundings) -> Choice:
    """Weigh the candidates; of equals the quicker one comes first. ValueError without any."""
    if not candidates:
        raise ValueError("there is no draft model to choose from")

    def rank(each: Measured) -> tuple[float, float, str]:
        return -_gain(each, around), each.level_time_s, each.name

    ranked = sorted(candidates, key=rank)
    rows = [Row(each, _gain(each, around), _break_even_s(each, ranked, around)) for each in ranked]
    return Choice(tuple(rows), around)


def _why_nothing(best: Measured, around: Surroundings) -> str:
    level_ms, step_ms = best.level_time_s * 1000, around.step_time_s * 1000
    if level_ms >= step_ms:
        return (
            f"one level of {best.name} takes {level_ms:.1f} ms, and the engine's step only"
            f" {step_ms:.1f} ms: {around.target_model} finds its tokens sooner without help"
        )
    return (
        f"a level of {best.name} takes {level_ms:.1f} ms and the round trip"
        f" {around.round_trip_s * 1000:.0f} ms, the engine's step only {step_ms:.1f} ms:"
        f" guesses for {around.target_model} come too late"
    )


def _break_even_s(
    measured: Measured, ranked: Sequence[Measured], around: Surroundings
) -> float | None:
    others = [each for each in ranked if each is not measured]
    if not others:
        return None
    return break_even_level_s(
        measured.acceptance, _gain(others[0], around), around.round_trip_s, around.step_time_s
    )


def _gain(measured: Measured, around: Surroundings) -> float:
    return predicted_gain(
        measured.acceptance, measured.level_time_s, around.round_trip_s, around.step_time_s
    )
