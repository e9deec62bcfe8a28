"""The child's loop, in a thread of the test: what it answers, and when it leaves."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.engine.child import serve
from coordinator.engine.framing import FrameCutter, FromChild, decode_from_child, encode
from coordinator.engine.messages import LoadFailed, Ready, SessionFailed, StepDone, ToEngine
from coordinator.engine.settings import EngineSettings
from tests.support.engine import batch, open_session
from tests.support.toy_engine import load

SETTINGS = EngineSettings("toy", max_sessions=2)


class Child:
    """A child in a thread, and the parent's end of its socket."""

    def __init__(self, settings: EngineSettings) -> None:
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
