"""The composition root as a process: it starts, says what it does, and leaves on a signal."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.record import CoordinatorRecord, seal_record
from specedge_p2p.overlay.discovery import serve_record
from specedge_p2p.overlay.libp2p_host import open_overlay
from tests.support.slow_hub import slow_hub


def start(
    home: Path, *arguments: str, command: str = "join", **environ: str
) -> subprocess.Popen[str]:
    # A node gives way to everything else, so on a busy machine it would never come to its point.
    priority = ("--priority", "normal") if command == "join" else ()
    return subprocess.Popen(
        [sys.executable, "-m", "node.cli", command, "--home", str(home), *priority, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The lines up to the one with `words`; the process's end ends the reading."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            break
    return "".join(lines)


NOBODY = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}"


def test_a_node_that_knows_no_coordinator_says_what_to_give(tmp_path: Path) -> None:
    process = start(tmp_path)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--coordinator ADDRESS" in said.strip().splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_soon(tmp_path: Path, number: int) -> None:
    process = start(tmp_path, "--coordinator", NOBODY)
    try:
        said = read_until(process, "next try") + read_until(process, "next try")
        assert said.count(f"no coordinator answers at {NOBODY}") == 2
        assert said.count("nothing listens there") == 1
        assert said.count("check the address that the coordinator prints") == 1
        assert "this node is 12D3Koo" in said
        process.send_signal(number)
        _, rest = process.communicate(timeout=30)  # 2 s on a machine that is not busy with tests
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, rest
    assert "Traceback" not in said + rest
    assert (tmp_path / "identity.pem").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("command", "code"), [("join", 0), ("profile", 130)])
def test_a_signal_ends_it_in_a_download(tmp_path: Path, command: str, code: int) -> None:
    with slow_hub() as hub:
        process = start(
            tmp_path / "home",
            *("--coordinator", NOBODY, "--draft-model", "some/model"),
            command=command,
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp_path / "hub"),
        )
        try:
            assert hub.is_asked.wait(60)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)  # the download would last for years
        finally:
            process.kill()
            process.wait()
    assert process.returncode == code, said
    assert "loading the draft model some/model" in said
    assert "Traceback" not in said


async def test_profile_of_a_coordinator_without_a_suggestion_is_one_clear_line(
    tmp_path: Path,
) -> None:
    identity = Identity.generate()
    command = (sys.executable, "-m", "node.cli", "profile")
    async with open_overlay(
        identity, listen=["/ip4/127.0.0.1/tcp/0"], bootstrap=(), dht="server"
    ) as overlay:
        record = CoordinatorRecord(
            peer_id=identity.peer_id,
            addresses=overlay.addresses,
            target_models=("big",),
            tokenizer_fingerprints=(),
            draft_models=(),
            load=0.0,
            sequence=1,
            expires_at_s=time.time() + 300,
        )
        async with serve_record(overlay, lambda: seal_record(identity, record)):
            done = await trio.run_process(
                [*command, "--home", str(tmp_path), "--coordinator", overlay.addresses[0]],
                capture_stderr=True,
                check=False,
            )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.decode().strip().splitlines()
    assert "the coordinator suggests no draft model" in line


def profile_says(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "node.cli", "profile", *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    return done.returncode, done.stdout


def test_profile_without_an_answer_names_the_address_and_the_other_way(tmp_path: Path) -> None:
    code, said = profile_says("--home", str(tmp_path), "--coordinator", NOBODY)
    assert code == 2
    (line,) = said.strip().splitlines()
    assert f"no coordinator answers at {NOBODY}" in line
    assert "nothing listens there" in line
    assert "--draft-model" in line


def test_profile_without_a_coordinator_times_the_model_alone(tmp_path: Path) -> None:
    code, said = profile_says("--home", str(tmp_path), "--draft-model", "demo-draft")
    assert code == 0, said
    assert "no coordinator was asked" in said
    assert "answers" not in said
    assert "demo-draft: a level of" in said


def test_one_home_serves_one_node(tmp_path: Path) -> None:
    first = start(tmp_path, "--coordinator", NOBODY)
    try:
        read_until(first, "this node is")
        second = start(tmp_path, "--coordinator", NOBODY)
        _, said = second.communicate(timeout=30)
        assert second.returncode == 2
        assert "another node runs from" in said
        assert len(said.strip().splitlines()) == 1
    finally:
        first.kill()
        first.communicate()


def test_an_unknown_model_is_one_clear_line(tmp_path: Path) -> None:
    process = start(tmp_path, "--draft-model", "/no/such/folder")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in said
    assert "/no/such/folder" in said.strip().splitlines()[-1]


def test_it_reports_what_it_did(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    process = start(
        tmp_path / "home",
        *("--coordinator", NOBODY, "--draft-model", "demo-draft"),
        *("--emulate", "slow-15ms", "--stretch", "2", "--report", str(report)),
    )
    try:
        said = read_until(process, "next try")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    times_ms = [float(ms) for ms in re.findall(r"in ([\d.]+) ms", said)]
    assert len(times_ms) == 4
    assert min(times_ms) >= 30.0
    told = json.loads(report.read_bytes())
    assert (told["emulate"], told["stretch"], told["num_links"]) == ("slow-15ms", 2.0, 0)
    # the measurement is not counted, and nobody gave it work
    assert (told["num_forwards"], told["num_late"], told["padded_s"]) == (0, 0, 0.0)
    assert (told["num_levels"], told["num_sent"], told["num_accepted"]) == (0, 0, 0)
