"""Padding to another device's times, on a clock that the test moves."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.lm.emulated import (
    DeviceProfile,
    EmulatedDevice,
    PaddedModel,
    PaddingTally,
    ProfileError,
    emulated_device,
    load_profile,
    profile_names,
    sleep_until,
)
from specedge_p2p.lm.ports import Children, OutOfCache, Rows, SamplingParams, TokenIds
from specedge_p2p.lm.toy import ToyModel

KEY = bytes(range(16))
DEVICE = DeviceProfile("d", "made up", step_ms=40, row_ms=1, level_ms=8, level_row_ms=0.5)


class Clock:
    """Moves when it is told to, and by `oversleep_s` too far when somebody waits on it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.oversleep_s = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def idle(self, until_s: float) -> None:
        assert until_s > self.now_s
        self.waits.append(until_s - self.now_s)
        self.now_s = until_s + self.oversleep_s


class WorkingModel(ToyModel):
    """Every forward takes work_s on the clock."""

    def __init__(self, clock: Clock, cache_rows: int = 1000) -> None:
        super().__init__(cache_rows=cache_rows)
        self.clock = clock
        self.work_s = 0.010

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        self.clock.now_s += self.work_s
        return super().choose(batch)

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        self.clock.now_s += self.work_s
        return super().expand(batch, branch_width)


def rows(sequence: int, num: int, first: int = 0) -> Rows:
    token_ids = np.arange(2, 2 + num, dtype=np.int32)
    positions = np.arange(first, first + num, dtype=np.int32)
    return Rows(sequence, token_ids, positions, None, 1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def working(clock: Clock) -> WorkingModel:
    model = WorkingModel(clock)
    for sequence in (1, 2):
        model.add_sequence(sequence, SamplingParams(temperature=0.7), KEY)
    return model


def on_device(clock: Clock, stretch: float = 1.0) -> EmulatedDevice:
    return EmulatedDevice(DEVICE, stretch, clock, clock.idle)


def test_a_step_takes_what_its_rows_cost(clock: Clock, working: WorkingModel) -> None:
    device = on_device(clock)
    device.as_target(working).choose([rows(1, 3), rows(2, 2)])
    assert clock.now_s == pytest.approx(100.045)
    assert clock.waits == [pytest.approx(0.035)]
    assert (device.tally.num_forwards, device.tally.num_late) == (1, 0)
    assert device.tally.used_s == pytest.approx(0.010)
    assert device.tally.padded_s == pytest.approx(0.045)


def test_a_level_takes_what_its_rows_cost_stretched(clock: Clock, working: WorkingModel) -> None:
    device = on_device(clock, stretch=4.0)
    device.as_draft(working).expand([rows(1, 6)], 4)
    assert clock.now_s == pytest.approx(100.0 + 4 * (0.008 + 6 * 0.0005))


def test_one_tally_counts_target_and_draft(clock: Clock, working: WorkingModel) -> None:
    device = on_device(clock)
    device.as_target(working).choose([rows(1, 1)])
    before = device.tally.snapshot()
    device.as_draft(working).expand([rows(2, 1)], 4)
    assert (before.num_forwards, device.tally.num_forwards) == (1, 2)
    device.tally.clear()
    assert device.tally == PaddingTally()


def test_work_that_takes_too_long_is_late_and_not_padded(
    clock: Clock, working: WorkingModel
) -> None:
    device = on_device(clock)
    model = device.as_target(working)
    working.work_s = 0.0415  # over by half a millisecond: not worth a word
    model.choose([rows(1, 1)])
    assert (device.tally.num_forwards, device.tally.num_late, clock.waits) == (1, 0, [])
    working.work_s = 0.0440
    model.choose([rows(2, 1)])
    assert (device.tally.num_forwards, device.tally.num_late, clock.waits) == (2, 1, [])
    assert device.tally.used_s == pytest.approx(0.0855)
    assert device.tally.padded_s == pytest.approx(0.082)
    assert device.tally.over_s == pytest.approx(0.0035)


def test_a_late_wake_up_is_late(clock: Clock, working: WorkingModel) -> None:
    device = on_device(clock)
    clock.oversleep_s = 0.0025
    device.as_target(working).choose([rows(1, 1)])
    assert device.tally.num_late == 1
    assert device.tally.used_s == pytest.approx(0.010)


def test_the_idle_can_be_changed_under_a_model(clock: Clock, working: WorkingModel) -> None:
    device = on_device(clock)
    model = device.as_target(working)
    heard: list[float] = []

    def listen(until_s: float) -> None:
        heard.append(until_s)
        clock.idle(until_s)

    device.idle = listen
    model.choose([rows(1, 1)])
    assert heard == [pytest.approx(100.041)]


def test_a_forward_that_fails_is_not_padded(clock: Clock) -> None:
    model = WorkingModel(clock, cache_rows=4)
    model.add_sequence(1, SamplingParams(), KEY)
    device = on_device(clock)
    with pytest.raises(OutOfCache):
        device.as_target(model).choose([rows(1, 5)])
    assert device.tally == PaddingTally()


def test_the_model_behind_it_is_the_same(clock: Clock) -> None:
    plain, inside = ToyModel(), ToyModel()
    padded = on_device(clock).as_target(inside)
    for model in (plain, padded):
        model.add_sequence(1, SamplingParams(temperature=0.7), KEY)
    assert padded.info == plain.info
    assert (padded.choose([rows(1, 3)])[0] == plain.choose([rows(1, 3)])[0]).all()
    ours, theirs = (m.expand([tree_row(3)], 4)[0] for m in (padded, plain))
    assert (ours.token_ids == theirs.token_ids).all()
    assert (ours.log_probs == theirs.log_probs).all()
    assert (padded.num_prefix_rows(1), padded.num_tail_rows(1)) == (3, 1)
    padded.compact(1, [0])
    assert (padded.num_prefix_rows(1), padded.num_free_rows) == (4, inside.num_free_rows)
    padded.drop_sequence(1)
    padded.add_sequence(1, SamplingParams(), KEY)


def tree_row(position: int) -> Rows:
    at = np.array([position], np.int32)
    return Rows(1, np.array([9], np.int32), at, np.array([[1]], np.uint64), 1)


@given(
    st.floats(0.001, 1.0),
    st.floats(0.0, 0.5),
    st.floats(0.0, 1.0),
    st.integers(min_value=1, max_value=5),
)
def test_late_is_five_percent_and_a_millisecond(
    cost_s: float, used_s: float, over_s: float, num: int
) -> None:
    tally = PaddingTally()
    for _ in range(num):
        tally.add(cost_s, used_s, cost_s + over_s)
    is_late = over_s > 0.0010001 and over_s > 0.0500001 * cost_s
    is_in_time = over_s < 0.0009999 or over_s < 0.0499999 * cost_s
    assert not (is_late and tally.num_late == 0)
    assert not (is_in_time and tally.num_late > 0)
    assert tally.num_late in (0, num)
    assert tally.num_forwards == num
    assert tally.used_s == pytest.approx(num * used_s)
    assert tally.padded_s == pytest.approx(num * cost_s)
    assert tally.over_s == pytest.approx(num * over_s, abs=1e-9)


def test_the_plain_idle_waits_for_the_real_clock() -> None:
    model = ToyModel()
    model.add_sequence(1, SamplingParams(), KEY)
    padded = PaddedModel(model, lambda num_rows: 0.01 * num_rows)
    started_s = time.monotonic()
    padded.choose([rows(1, 2)])
    assert time.monotonic() - started_s >= 0.02
    assert (padded.tally.num_forwards, padded.tally.padded_s) == (1, 0.02)
    sleep_until(started_s)  # the past is no wait


@pytest.mark.parametrize(
    ("name", "step_s", "level_s"),
    [
        ("h200-14b", 0.0174, 0.00616),
        ("a100-32b", 0.048, 0.0092),
        ("big-70b", 0.104, 0.013),
        ("paper-32b", 0.104, 0.013),
        ("rtx4090-1.7b", None, 0.007),
        ("rtx4090-4b", None, 0.010),
        ("slow-15ms", None, 0.016),
        ("large-12ms", None, 0.014),
        ("paper-node", None, 0.013),
    ],
)
def test_the_profiles_that_come_along(name: str, step_s: float | None, level_s: float) -> None:
    """What 100 rows take."""
    profile = load_profile(name)
    assert profile.name == name
    assert profile.notes
    assert profile.level_cost()(100) == pytest.approx(level_s)
    if step_s is None:
        with pytest.raises(ProfileError, match="step_ms"):
            profile.step_cost()
    else:
        assert profile.step_cost()(100) == pytest.approx(step_s)
        assert profile.step_cost(3.0)(100) == pytest.approx(3 * step_s)


def test_all_profiles_are_tested() -> None:
    assert len(profile_names()) == 9


def test_a_profile_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"name": "mine", "notes": "guessed", "step_ms": 20}')
    device = emulated_device(str(file), 2.0)
    assert device is not None
    assert (device.profile.name, device.stretch) == ("mine", 2.0)
    with pytest.raises(ProfileError, match=r"mine.*level_ms"):
        device.as_draft(ToyModel())
    assert emulated_device("", 2.0) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"name": "x"', "truncated"),
        ('{"name": "x", "notes": "", "step_ms": -1}', "step_ms"),
        ('{"name": "x", "notes": "", "step_ms": 1e999}', "x.json"),
        ('{"name": "x", "notes": "", "steps_ms": 1}', "steps_ms"),
        ('{"name": "x"}', "notes"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ProfileError, match=word) as caught:
        load_profile(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no-such", "../profiles/h200-14b", "", "."])
def test_an_unknown_name_lists_those_that_are_known(name: str) -> None:
    with pytest.raises(ProfileError, match=r"a100-32b.*rtx4090-1\.7b"):
        load_profile(name)
