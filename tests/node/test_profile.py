"""Draft models measured on a target's own tokens, and the choice kept between runs."""

import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.acceptance import first_guess_acceptance
from node.hardware import Benchmark, LevelTime
from node.join import Draft
from node.profile import MAX_FILE_BYTES, DraftChooser, ProfileFile
from node.profiling import run_blocking
from node.selection import NoFit
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.record import CoordinatorRecord
from specedge_p2p.lm.ports import ModelError, SamplingParams
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from specedge_p2p.overlay.discovery import FoundCoordinator
from specedge_p2p.overlay.memory import MemoryNetwork, address_of
from specedge_p2p.overlay.sample import DraftSample, sample_case, serve_sample

HOST, NODE = (Identity(bytes([number] * 32)) for number in range(2))
TARGET = ToyParams(vocab_size=32, eos_bias=-60.0)
TOKENIZER = b"t" * 16
SKILLS = {"perfect": 0.0, "good": 0.3, "fair": 0.8, "poor": 2.5}
LEVELS_MS = {"perfect": 60.0, "good": 6.0, "fair": 3.0, "poor": 1.0, "stranger": 6.0}


def draft(name: str) -> ToyModel:
    skill = SKILLS.get(name, 0.0)
    params = ToyParams(vocab_size=32, eos_bias=-60.0, perturbation=skill)
    return ToyModel(params, name=name)


def sample(num_tokens: int = 150, temperature: float = 0.7) -> DraftSample:
    cases = []
    for seed in range(4):
        key, prompt = bytes([seed] * 16), [2 + seed, 3, 4]
        heat = temperature if seed % 2 else 0.0
        tokens = toy_decode(TARGET, prompt, SamplingParams(heat), key, num_tokens)
        cases.append(sample_case(prompt, tokens, heat, key))
    return DraftSample("toy", TOKENIZER, 32, 0.04, cases)


def test_acceptance_is_measured_on_the_targets_tokens() -> None:
    shares = {name: first_guess_acceptance(draft(name), sample()) for name in SKILLS}
    assert shares["perfect"] == 1.0
    assert 0.8 < shares["good"] < 0.95
    assert shares["good"] > shares["fair"] > shares["poor"] > 0.1


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = draft("good")
    free = model.num_free_rows
    first = first_guess_acceptance(model, sample())
    assert model.num_free_rows == free
    assert first_guess_acceptance(model, sample()) == first


def test_what_a_model_cannot_hold_is_left_out() -> None:
    short = ToyModel(TARGET, name="short", max_context=20)
    assert first_guess_acceptance(short, sample()) == 1.0
    narrow = ToyModel(ToyParams(vocab_size=8), name="narrow")
    assert first_guess_acceptance(narrow, sample()) == 0.0


class World:
    """A coordinator with a sample, and a chooser whose models are toys."""

    def __init__(self, path: Path, given: DraftSample | None = None) -> None:
        network = MemoryNetwork()
        self.host, self.node = network.join(HOST.peer_id), network.join(NODE.peer_id)
        self.path, self.sample = path, given
        self.prepared: list[str] = []
        self.gone = {"missing", "lost"}
        self.alive: weakref.WeakSet[ToyModel] = weakref.WeakSet()
        self.weights: dict[str, str] = {}
        address = address_of(HOST.peer_id)
        record = CoordinatorRecord(
            peer_id=HOST.peer_id,
            addresses=(address,),
            target_models=("toy",),
            tokenizer_fingerprints=(TOKENIZER,),
            draft_models=(),
            load=0.0,
            sequence=1,
            expires_at_s=1e12,
        )
        self.found = FoundCoordinator(record, address, 0.015)

    async def pick(self, *names: str, machine: str = "this machine") -> Draft:
        chooser = DraftChooser(
            self.node, self._prepare, self._run, ProfileFile(self.path), machine, 0.0
        )
        async with serve_sample(self.host, self._current):
            try:
                return await chooser.pick(names, self.found)
            except (ModelError, NoFit) as error:  # would leave this context in a group
                problem = error
        raise problem

    async def _current(self) -> DraftSample | None:
        await trio.lowlevel.checkpoint()
        return self.sample

    async def _prepare(self, name: str) -> Draft:
        await trio.lowlevel.checkpoint()
        self.prepared.append(name)
        assert not self.alive, "a model would have to share the memory"
        if name in self.gone:
            model = draft(name)
            self.alive.add(model)  # as an error does that is raised while a model is loaded
            raise ModelError(f"no model {name!r}")
        params = ToyParams(vocab_size=32, eos_bias=-60.0, perturbation=SKILLS.get(name, 0.0))
        model = ToyModel(params, name=self.weights.get(name, name))
        self.alive.add(model)
        tokenizer = b"x" * 16 if name == "stranger" else TOKENIZER
        level = LevelTime(16, LEVELS_MS[name] / 1000)
        return Draft(name, model, tokenizer, Benchmark((level,)))

    async def _run(self, measure: Callable[[], float]) -> float:
        await trio.lowlevel.checkpoint()
        return measure()


async def test_the_most_gain_wins_and_is_known_the_next_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Each is alone in memory: while others are measured, the best one so far is not there."""
    world = World(tmp_path / "profile.json", sample())
    assert (await world.pick("perfect", "poor", "good", "fair")).name == "good"
    assert world.prepared == ["perfect", "poor", "good", "fair", "good"]
    world.prepared.clear()
    assert (await world.pick("perfect", "poor", "good", "fair")).name == "good"
    assert world.prepared == ["good"]
    world.prepared.clear()
    assert (await world.pick("fair", "poor")).name == "fair"
    assert world.prepared == ["fair"]


async def test_another_machine_model_or_target_is_measured_anew(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path / "profile.json", sample())
    await world.pick("good", "fair")
    world.prepared.clear()
    await world.pick("good", "fair", machine="another machine")
    assert world.prepared == ["good", "fair", "good"]
    world.prepared.clear()
    world.weights["good"] = "trained anew"
    await world.pick("good", "fair")
    assert world.prepared == ["good", "good", "fair", "good"]
    world.prepared.clear()
    world.sample = sample(100)
    await world.pick("good", "fair")
    assert world.prepared == ["good", "fair", "good"]


async def test_without_a_sample_the_first_is_taken(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path / "profile.json")
    assert (await world.pick("fair", "good")).name == "fair"
    assert world.prepared == ["fair"]
    assert not (tmp_path / "profile.json").exists()


async def test_without_a_sample_the_first_that_fits_is_taken(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path / "profile.json")
    assert (await world.pick("missing", "stranger", "good", "fair")).name == "good"
    assert world.prepared == ["missing", "stranger", "good"]
    with pytest.raises(ModelError, match="missing"):
        await world.pick("missing")


async def test_what_was_known_and_is_gone_is_left_out(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path / "profile.json", sample())
    await world.pick("good", "fair")
    world.gone.add("good")
    assert (await world.pick("good", "fair")).name == "fair"


async def test_a_model_that_cannot_be_used_is_left_out(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path / "profile.json", sample())
    assert (await world.pick("missing", "stranger", "fair")).name == "fair"
    with pytest.raises(ModelError, match="missing"):
        await world.pick("missing", "lost")
    # one of them may fit another coordinator
    for names in (("stranger", "missing"), ("missing", "stranger")):
        with pytest.raises(NoFit, match="tokenizer"):
            await world.pick(*names)


@pytest.mark.parametrize(
    "broken", [b"{", b"[1]", b'[{"model": 1}]', b"\xff", b"[" * 5000, b" " * (MAX_FILE_BYTES + 1)]
)
async def test_a_broken_profile_is_measured_anew(
    autojump_clock: MockClock, tmp_path: Path, broken: bytes
) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(broken)
    world = World(path, sample())
    assert (await world.pick("good", "poor")).name == "good"
    world.prepared.clear()
    await world.pick("good", "poor")
    assert world.prepared == ["good"]


async def test_a_disk_that_fails_costs_the_memory_alone(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    world = World(tmp_path / "file" / "profile.json", sample())
    assert (await world.pick("good", "poor")).name == "good"


async def test_who_leaves_does_not_wait_for_a_measurement() -> None:
    has_begun, may_end, has_ended = (threading.Event() for _ in range(3))

    def measure() -> float:
        has_begun.set()
        may_end.wait(20)
        has_ended.set()
        return 1.0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_blocking, measure)
        await trio.to_thread.run_sync(has_begun.wait)
        nursery.cancel_scope.cancel()
    assert not has_ended.is_set()
    may_end.set()
