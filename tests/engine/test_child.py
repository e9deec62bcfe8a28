"""The child's loop, in a thread of the test: what it answers, and when it leaves."""

import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.engine.child import MAX_DEFERRED, Connection, EngineChild, ParentGone, serve
from coordinator.engine.core import EngineCore
from coordinator.engine.framing import FrameCutter, FromChild, decode_from_child, encode
from coordinator.engine.messages import (
    CloseSession,
    DropSource,
    LevelTerms,
    LoadFailed,
    Ready,
    SessionFailed,
    StepDone,
    ToEngine,
)
from coordinator.engine.models import EngineModels, LoadModels
from coordinator.engine.settings import EngineLimits, EngineSettings
from specedge_p2p.lm.ports import Children, OutOfCache, Rows, TokenIds
from specedge_p2p.lm.toy import ToyModel, toy_decode
from specedge_p2p.noise import noise_key, seed_bytes
from tests.support.engine import GREEDY, batch, open_session, vertices
from tests.support.toy_engine import PARAMS, load

SETTINGS = EngineSettings("toy", max_sessions=2)


class Child:
    """A child in a thread, and the parent's end of its socket."""

    def __init__(self, settings: EngineSettings, load: LoadModels = load) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(10)
        self.exit_code: int | None = None
        self._cutter = FrameCutter()
        self._messages: list[FromChild] = []

        def live() -> None:
            with theirs:
                self.exit_code = serve(theirs, settings, load)

        self._thread = threading.Thread(target=live, daemon=True)
        self._thread.start()

    def say(self, *messages: ToEngine) -> None:
        self.sock.sendall(encode(*messages))

    def hear(self) -> FromChild:
        while not self._messages:
            data = self.sock.recv(65536)
            assert data, "the child has left"
            for frame in self._cutter.feed(data):
                self._messages += decode_from_child(frame)
        return self._messages.pop(0)

    def join(self) -> int | None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.exit_code

    def close(self) -> None:
        self.sock.close()
        self.join()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child(SETTINGS)
    assert isinstance(child.hear(), Ready)
    yield child
    child.close()


def test_it_leaves_when_the_socket_closes(child: Child) -> None:
    child.sock.close()
    assert child.join() == 0


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, step_floor_s=0.3)])
def test_it_leaves_when_the_socket_closes_during_a_step(settings: EngineSettings) -> None:
    child = Child(settings)
    assert isinstance(child.hear(), Ready)
    child.say(open_session(1, [5] * 500), *[batch([1], step_no=n) for n in range(20)])
    child.sock.close()
    assert child.join() == 0


def test_it_leaves_when_it_hears_nonsense(child: Child, capsys: pytest.CaptureFixture[str]) -> None:
    child.sock.sendall(b"\0\0\0\2{}")
    assert child.join() == 1
    assert capsys.readouterr().err.startswith("engine: ")


def test_it_says_why_it_cannot_load() -> None:
    child = Child(EngineSettings("missing"))
    assert child.hear() == LoadFailed("there is no model named missing")
    assert child.join() == 2
    child.close()


class NoRoom(ToyModel):
    """It could be loaded, but no memory is left for its forwards."""

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        raise OutOfCache("no memory is left for the forward")

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        raise OutOfCache("no memory is left for the level")


@pytest.mark.parametrize(
    ("models", "text"),
    [
        (EngineModels(NoRoom(PARAMS)), "no memory is left for the forward"),
        (EngineModels(ToyModel(PARAMS), NoRoom(PARAMS)), "no memory is left for the level"),
    ],
)
def test_it_says_that_the_first_forwards_find_no_memory(models: EngineModels, text: str) -> None:
    child = Child(SETTINGS, lambda _: models)
    assert child.hear() == LoadFailed(text)
    assert child.join() == 2
    child.close()


def test_the_collector_of_another_process_is_left_alone() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    child = Child(SETTINGS)
    assert isinstance(child.hear(), Ready)
    child.say(open_session(1, [5, 6]), batch([1]))
    assert isinstance(child.hear(), StepDone)  # so it has come to its loop
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    child.close()


ENGINE_PROCESS = """
import gc, socket
from coordinator.engine.child import arguments, run_child
from coordinator.engine.settings import EngineSettings
from tests.support.toy_engine import load
ours, theirs = socket.socketpair()
ours.shutdown(socket.SHUT_WR)
args = arguments(theirs, EngineSettings("toy"))
theirs.detach()
assert run_child(args, load) == 0
assert gc.get_freeze_count() > 1000
assert gc.get_threshold()[0] > 10_000
"""


def test_in_its_own_process_the_collector_looks_rarely() -> None:
    subprocess.run([sys.executable, "-c", ENGINE_PROCESS], check=True)


def test_law7_bounded_steps_wait_in_the_socket(child: Child) -> None:
    child.say(*[open_session(n, [5, 6]) for n in (1, 2, 3)])
    assert isinstance(child.hear(), SessionFailed)  # max_sessions of the settings
    child.say(*[batch([1, 2], step_no=n) for n in range(50)])
    for step_no in range(50):
        done = child.hear()
        assert isinstance(done, StepDone)
        assert done.step_no == step_no


def test_a_full_queue_does_not_break_the_padding() -> None:
    child = Child(replace(SETTINGS, step_floor_s=0.02))
    assert isinstance(child.hear(), Ready)
    child.say(open_session(1, [5, 6]), *[batch([1], step_no=n) for n in range(8)])
    for _ in range(8):
        done = child.hear()
        assert isinstance(done, StepDone)
        assert done.ended_s - done.started_s >= 0.02
    child.close()


PROFILE = '{"name": "p", "notes": "for a test", "step_ms": 10, "row_ms": 2}'


def test_an_emulated_device_takes_its_time_and_counts(tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text(PROFILE)
    child = Child(replace(SETTINGS, emulate=str(profile), stretch=2.0))
    ready = child.hear()
    assert isinstance(ready, Ready)
    assert ready.step_time_s >= 0.024
    child.say(open_session(1, [5, 6, 7]), *[batch([1], step_no=n) for n in range(3)])
    padded_s = 0.0
    for num_padded in (1, 2, 3):
        done = child.hear()
        assert isinstance(done, StepDone)
        cost_s = 0.02 + 0.004 * done.num_forward_rows
        padded_s += cost_s
        assert done.ended_s - done.started_s >= cost_s
        assert done.num_padded == num_padded  # the calibration is not counted
        assert done.padded_s == pytest.approx(padded_s)
        assert done.used_s > 0
        assert 0 <= done.num_late <= num_padded
    child.close()


def test_a_real_device_counts_nothing(child: Child) -> None:
    child.say(open_session(1, [5, 6]), batch([1]))
    done = child.hear()
    assert isinstance(done, StepDone)
    assert (done.num_padded, done.num_late, done.used_s, done.padded_s) == (0, 0, 0.0, 0.0)


@pytest.mark.parametrize(("profile", "words"), [("no-such", "a100-32b"), ("slow-15ms", "step_ms")])
def test_a_profile_that_cannot_be_used_is_said(profile: str, words: str) -> None:
    child = Child(replace(SETTINGS, emulate=profile))
    failed = child.hear()
    assert isinstance(failed, LoadFailed)
    assert words in failed.text
    assert child.join() == 2
    child.close()


def emulated(folder: Path, step_ms: int, draft_model: str = "") -> EngineSettings:
    profile = folder / "slow.json"
    times = f'"step_ms": {step_ms}, "row_ms": 0, "level_ms": 20, "level_row_ms": 0'
    profile.write_text('{"name": "slow", "notes": "for a test", ' + times + "}")
    return replace(SETTINGS, emulate=str(profile), draft_model=draft_model)


class Interrupted(ToyModel):
    """The coordinator speaks in the middle of its forwards, and hangs up in the last of them."""

    def __init__(self, sock: socket.socket, meanwhile: Sequence[Sequence[ToEngine]]) -> None:
        super().__init__(PARAMS)
        self._sock, self._meanwhile = sock, list(meanwhile)
        self.wait: Callable[[], None] | None = None

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        choices = super().choose(batch)
        if self._meanwhile:
            self._sock.sendall(encode(*self._meanwhile.pop(0)))
            assert self.wait is not None
            self.wait()
        else:
            self._sock.shutdown(socket.SHUT_WR)
        return choices


MOMENT_S = 0.2
"""In which all that was sent is heard."""


def until_a_moment(child: EngineChild) -> None:
    child.idle(time.monotonic() + MOMENT_S)


def while_a_device_computes(child: EngineChild) -> None:
    done_s = time.monotonic() + MOMENT_S
    child.hear_while(lambda: time.monotonic() >= done_s)


WAITS = pytest.mark.parametrize("wait", [until_a_moment, while_a_device_computes])
Wait = Callable[[EngineChild], None]


def converse(
    wait: Wait, first: Sequence[ToEngine], *meanwhile: Sequence[ToEngine]
) -> list[FromChild]:
    """What a child says that hears `first`, then in each forward the next of `meanwhile`."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        model = Interrupted(ours, meanwhile)
        child = EngineChild(Connection(theirs), EngineCore(model, time.monotonic))
        model.wait = lambda: wait(child)
        ours.sendall(encode(*first))
        with pytest.raises(ParentGone):
            child.run()
        theirs.close()
        said = b"".join(iter(lambda: ours.recv(65536), b""))
    return [message for frame in FrameCutter().feed(said) for message in decode_from_child(frame)]


@WAITS
def test_a_forward_that_waits_listens(wait: Wait) -> None:
    """Trees and batches are taken at once; what opens a session waits for the step's end."""
    prompt = [5, 6, 7]
    right = toy_decode(PARAMS, prompt, GREEDY, noise_key(seed_bytes(0), prompt), 16)
    tree_of_a_session_to_come = vertices(2, 3, 3, right[:2])
    both = batch([1, 2], step_no=2, sources=[3], hit_rates=[0, 0, 0])
    first, second = converse(
        wait,
        [open_session(1, prompt), batch([1])],
        [
            vertices(1, 3, 3, right[:4]),
            vertices(1, 4, 3, right[:1]),
            DropSource(1, 4),
            open_session(2, prompt),
            tree_of_a_session_to_come,
            both,
        ],
    )
    assert isinstance(first, StepDone)
    assert [seen.source for seen in first.results[0].seen] == [3]  # it came during the step
    assert isinstance(second, StepDone)
    assert [result.token_ids for result in second.results] == [right[1:5], right[:1]]
    assert [seen.source for seen in second.results[1].seen] == [3]


@WAITS
def test_what_closes_a_session_waits_for_the_end_of_its_step(wait: Wait) -> None:
    prompt = [5, 6, 7]
    first, *failures, last = converse(
        wait,
        [open_session(1, prompt), open_session(2, prompt), batch([1])],
        [CloseSession(1), vertices(1, 3, 3, [9]), batch([1, 2], step_no=2)],
    )
    assert isinstance(first, StepDone)
    assert len(first.results) == 1
    assert first.results[0].seen == []  # what came after the close is nobody's
    assert failures == []
    assert isinstance(last, StepDone)
    assert [result.session for result in last.results] == [2]


@WAITS
def test_law7_bounded_what_waits_for_a_step_stays_in_the_socket(wait: Wait) -> None:
    opened = [open_session(n, [5, 6]) for n in range(2, 3 * MAX_DEFERRED)]
    *refused, last = converse(
        wait,
        [open_session(1, [5, 6]), batch([1])],
        [*opened, batch([1, 2 * MAX_DEFERRED], step_no=2)],
    )
    (at,) = [i for i, said in enumerate(refused) if isinstance(said, StepDone)]
    num_places = EngineLimits().max_sessions - 1
    assert at == MAX_DEFERRED - num_places  # what the child had set aside by the end of the step
    assert len(refused) - 1 == len(opened) - num_places
    assert isinstance(last, StepDone)
    assert last.step_no == 2


def test_it_leaves_in_the_middle_of_a_padded_forward(tmp_path: Path) -> None:
    child = Child(emulated(tmp_path, step_ms=300))
    assert isinstance(child.hear(), Ready)
    child.say(open_session(1, [5, 6, 7]), *[batch([1], step_no=n) for n in range(3)])
    child.sock.close()
    assert child.join() == 0


def test_levels_are_measured_and_padded(tmp_path: Path) -> None:
    child = Child(emulated(tmp_path, step_ms=30, draft_model="toy"))
    ready = child.hear()
    assert isinstance(ready, Ready)
    assert ready.level_time_s >= 0.02
    assert len(ready.draft_fingerprint) == 16
    terms = LevelTerms(0.02, 0.0, 0.0, tokens_per_s=1.0, max_levels=2)
    child.say(open_session(1, [5, 6, 7]), batch([1]), batch([1], levels=terms))
    first, second = child.hear(), child.hear()
    assert isinstance(first, StepDone)
    assert isinstance(second, StepDone)
    assert second.num_levels == 2
    assert second.level_s >= 0.04
    assert second.ended_s - second.started_s >= 0.07
    assert second.num_padded == first.num_padded + 3
    child.close()
