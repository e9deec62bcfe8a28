"""Other people's accelerators on this machine: every forward is padded to what it would take there.

The models are real and so are the tokens, the processes and the link; only time is added. A small
model on a small machine computes within the time that a large one takes on a large device, and the
rest of that time is slept. Where the machine is too slow even for that, `stretch` makes every
emulated second last longer. The tally says how often the real work was not done in time: a run with
many late forwards measured this machine and not the emulated one.

What is emulated is the time of a forward by its rows. Bookkeeping between forwards takes the time
that it takes here (divided by `stretch`); context length, memory and bandwidth are not emulated.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from specedge_p2p.errors import ClearError
from specedge_p2p.lm.ports import Children, LanguageModel, Rows, TokenIds
from specedge_p2p.lm.wrapped import WrappedModel

Clock = Callable[[], float]
Idle = Callable[[float], None]
"""Returns when the clock shows the given moment; meanwhile it may do something useful."""

LATE_SHARE = 0.05
LATE_S = 0.001
"""A forward is late when it ends by more than both after its padded time."""

_PROFILES = Path(__file__).with_name("profiles")
_Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=600_000)]


class ProfileError(ClearError):
    """A device profile cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """Seconds of a forward by its rows."""

    fixed_s: float
    row_s: float

    def __call__(self, num_rows: int) -> float:
        return self.fixed_s + self.row_s * num_rows


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What forwards cost on a device, as JSON spells it.

    Args:
        step_ms, row_ms: a step of the target model, and each of its rows; 0 where the device
            verifies nothing.
        level_ms, level_row_ms: a level of the draft model, and each of its rows; 0 where the
            device drafts nothing.
        notes: where the figures come from.
    """

    name: str
    notes: str
    step_ms: _Milliseconds = 0.0
    row_ms: _Milliseconds = 0.0
    level_ms: _Milliseconds = 0.0
    level_row_ms: _Milliseconds = 0.0

    def step_cost(self, stretch: float = 1.0) -> ForwardCost:
        """Real seconds of a target forward. Raises ProfileError where the profile has none."""
        if not self.step_ms:
            raise ProfileError(f"profile {self.name}: it says no step_ms, so it verifies nothing")
        return _cost(self.step_ms, self.row_ms, stretch)

    def level_cost(self, stretch: float = 1.0) -> ForwardCost:
        """Real seconds of a draft forward. Raises ProfileError where the profile has none."""
        if not self.level_ms:
            raise ProfileError(f"profile {self.name}: it says no level_ms, so it drafts nothing")
        return _cost(self.level_ms, self.level_row_ms, stretch)


def _cost(fixed_ms: float, row_ms: float, stretch: float) -> ForwardCost:
    return ForwardCost(fixed_ms / 1000 * stretch, row_ms / 1000 * stretch)


def profile_names() -> tuple[str, ...]:
    """The profiles that come with the package."""
    return tuple(sorted(path.stem for path in _PROFILES.glob("*.json")))


def load_profile(name_or_file: str) -> DeviceProfile:
    """A profile by its name, or from a JSON file. Raises ProfileError."""
    is_known = name_or_file in profile_names()
    file = _PROFILES / f"{name_or_file}.json" if is_known else Path(name_or_file)
    try:
        return msgspec.json.decode(file.read_bytes(), type=DeviceProfile)
    except OSError:
        raise ProfileError(
            f"there is no device profile {name_or_file}: give a JSON file or one of "
            + ", ".join(profile_names())
        ) from None
    except msgspec.MsgspecError as error:
        raise ProfileError(f"device profile {name_or_file}: {error}") from None


@dataclass(slots=True)
class PaddingTally:
    """Whether the emulation held, over all padded forwards so far.

    Args:
        num_forwards: padded forwards.
        num_late: those that ended late, by the real work or by the wake-up.
        used_s: real seconds that their work took.
        padded_s: real seconds that they were to take.
        over_s: real seconds by which they ended after their time, late or not.
    """

    num_forwards: int = 0
    num_late: int = 0
    used_s: float = 0.0
    padded_s: float = 0.0
    over_s: float = 0.0

    def add(self, cost_s: float, used_s: float, total_s: float) -> None:
        """Count a forward that was to take cost_s, worked used_s and ended after total_s."""
        self.num_forwards += 1
        over_s = total_s - cost_s
        self.num_late += over_s > max(LATE_S, LATE_SHARE * cost_s)
        self.over_s += max(0.0, over_s)
        self.used_s += used_s
        self.padded_s += cost_s

    def snapshot(self) -> "PaddingTally":
        return replace(self)

    def clear(self) -> None:
        """Forget what was counted: a calibration is not part of a run."""
        self.num_forwards = self.num_late = 0
        self.used_s = self.padded_s = self.over_s = 0.0


def sleep_until(until_s: float) -> None:
    """The plain idle: by time.monotonic."""
    while (rest_s := until_s - time.monotonic()) > 0:
        time.sleep(rest_s)


class PaddedModel(WrappedModel):
    """A model whose forwards take the time of another device, or as long as they take if longer.

    Args:
        model: does the work.
        cost: real seconds that a forward is to take, by the number of its rows.
        clock: seconds, rising.
        idle: waits on the same clock.
        tally: what is counted, possibly together with other models of the device.
    """

    def __init__(
        self,
        model: LanguageModel,
        cost: Callable[[int], float],
        clock: Clock = time.monotonic,
        idle: Idle = sleep_until,
        tally: PaddingTally | None = None,
    ) -> None:
        super().__init__(model)
        self._cost, self._clock, self._idle = cost, clock, idle
        self.tally = PaddingTally() if tally is None else tally

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        started_s = self._clock()
        choices = super().choose(batch)
        self._pad(batch, started_s)
        return choices

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        started_s = self._clock()
        children = super().expand(batch, branch_width)
        self._pad(batch, started_s)
        return children

    def _pad(self, batch: Sequence[Rows], started_s: float) -> None:
        cost_s = self._cost(sum(len(rows.token_ids) for rows in batch))
        worked_s = self._clock()
        if worked_s < started_s + cost_s:
            self._idle(started_s + cost_s)
        self.tally.add(cost_s, worked_s - started_s, self._clock() - started_s)


class EmulatedDevice:
    """One device: the models on it are padded by its profile and counted in one tally.

    Args:
        profile: what forwards cost on the device.
        stretch: real seconds that an emulated second takes.
        clock: seconds, rising.
        idle: how a forward waits for its end, on the same clock; may be changed between forwards.
        tally: what is counted, possibly together with other devices of the process.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        stretch: float = 1.0,
        clock: Clock = time.monotonic,
        idle: Idle = sleep_until,
        tally: PaddingTally | None = None,
    ) -> None:
        self.profile = profile
        self.stretch = stretch
        self.tally = PaddingTally() if tally is None else tally
        self.idle = idle
        self._clock = clock

    def as_target(self, model: LanguageModel) -> PaddedModel:
        """Every forward costs a step. Raises ProfileError."""
        return self._padded(model, self.profile.step_cost(self.stretch))

    def as_draft(self, model: LanguageModel) -> PaddedModel:
        """Every forward costs a level. Raises ProfileError."""
        return self._padded(model, self.profile.level_cost(self.stretch))

    def _padded(self, model: LanguageModel, cost: ForwardCost) -> PaddedModel:
        return PaddedModel(model, cost, self._clock, lambda until_s: self.idle(until_s), self.tally)


def emulated_device(name_or_file: str, stretch: float) -> EmulatedDevice | None:
    """The device of two settings; None for an empty name. Raises ProfileError."""
    return EmulatedDevice(load_profile(name_or_file), stretch) if name_or_file else None
