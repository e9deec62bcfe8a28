"""What was measured of draft models on this machine, kept between runs, and the choice by it."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec

from node.acceptance import first_guess_acceptance
from node.choice import Choice, Measured, Surroundings, choose
from node.drafter import DrafterSettings
from node.join import Draft
from node.selection import NoFit
from specedge_p2p.lm.ports import ModelError
from specedge_p2p.overlay.discovery import FoundCoordinator
from specedge_p2p.overlay.ports import Overlay
from specedge_p2p.overlay.sample import DraftSample, SampleError, fetch_sample

log = logging.getLogger(__name__)

MAX_ENTRIES = 64
MAX_FILE_BYTES = 256 * 1024


class ProfileEntry(msgspec.Struct, frozen=True):
    """One draft model, measured for one target on this machine.

    Args:
        model, fingerprint: the draft model and its weights.
        machine: device, arithmetic, threads and software, as one text.
        target: the target and its sample, as one text.
        acceptance, level_time_s: see Measured.
    """

    model: str
    fingerprint: str
    machine: str
    target: str
    acceptance: float
    level_time_s: float

    @property
    def measured(self) -> Measured:
        return Measured(self.model, self.acceptance, self.level_time_s)


class ProfileFile:
    """The entries in a small JSON file, the newest first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _load(path)

    def find(self, model: str, machine: str, target: str) -> ProfileEntry | None:
        for entry in self._entries:
            if (entry.model, entry.machine, entry.target) == (model, machine, target):
                return entry
        return None

    def remember(self, new: Sequence[ProfileEntry]) -> None:
        """Put these first and write the file. A disk that fails costs a warning, no more."""
        replaced = {(entry.model, entry.machine, entry.target) for entry in new}
        kept = [e for e in self._entries if (e.model, e.machine, e.target) not in replaced]
        self._entries = [*new, *kept][:MAX_ENTRIES]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(msgspec.json.format(msgspec.json.encode(self._entries)))
        except OSError as error:
            log.warning("cannot keep the profile in %s: %s", self._path, error.strerror)


@dataclass(frozen=True, slots=True)
class Picked:
    """The draft model to join with, and the table by which it was chosen."""

    draft: Draft
    choice: Choice


Prepare = Callable[[str], Awaitable[Draft]]
Measure = Callable[[Callable[[], float]], Awaitable[float]]
"""Runs a measurement that blocks."""


class DraftChooser:
    """Finds the draft model that is worth most to a coordinator.

    Args:
        overlay: the running participant.
        prepare: loads and times a draft model by name.
        run: runs what blocks.
        profiles: what is known from earlier runs.
        machine: device, arithmetic, threads and software, as one text.
        added_round_trip_s: what is added to every link, for measuring.
    """

    def __init__(
        self,
        overlay: Overlay,
        prepare: Prepare,
        run: Measure,
        profiles: ProfileFile,
        machine: str,
        added_round_trip_s: float = 0.0,
    ) -> None:
        self._overlay, self._prepare, self._run = overlay, prepare, run
        self._profiles, self._machine = profiles, machine
        self._added_round_trip_s = added_round_trip_s

    async def pick(self, names: Sequence[str], coordinator: FoundCoordinator) -> Draft:
        """The best of several models; the first where the coordinator gives no sample.

        Raises ModelError where none can be loaded, NoFit where none has the target's tokenizer.
        """
        try:
            sample = await fetch_sample(self._overlay, coordinator.address)
        except SampleError as error:
            log.info("draft models cannot be compared (%s): taking %s", error, names[0])
            return await self._prepare(names[0])
        around = self.surroundings(sample, coordinator)
        draft = await self._known_best(names, sample, around)
        if draft is None:
            picked = await self.measure(names, sample, around)
            draft = picked.draft
            log.info("%s", picked.choice.why)
        return draft

    def surroundings(self, sample: DraftSample, coordinator: FoundCoordinator) -> Surroundings:
        return Surroundings(
            sample.target_model,
            sample.step_time_s,
            coordinator.round_trip_s + self._added_round_trip_s,
        )

    async def measure(
        self, names: Sequence[str], sample: DraftSample, around: Surroundings
    ) -> Picked:
        """Load and measure one model after the other; never more than two are in memory."""
        entries: list[ProfileEntry] = []
        best: Draft | None = None
        problem: Exception = NoFit("there is no draft model to choose from")
        for name in names:
            try:
                draft = await self._prepare(name)
                entries.append(await self._entry(draft, sample))
            except (ModelError, NoFit) as error:
                log.warning("%s is left out: %s", name, error)
                problem = error
                continue
            if choose([e.measured for e in entries], around).best.name == name:
                best = draft
        if best is None:
            raise problem
        self._profiles.remember(entries)
        return Picked(best, choose([entry.measured for entry in entries], around))

    async def _known_best(
        self, names: Sequence[str], sample: DraftSample, around: Surroundings
    ) -> Draft | None:
        """The best by what was measured before, unless its weights have changed."""
        target = _target(sample)
        entries = [self._profiles.find(name, self._machine, target) for name in names]
        known = [entry for entry in entries if entry is not None]
        if len(known) < len(names):
            return None
        choice = choose([entry.measured for entry in known], around)
        draft = await self._prepare(choice.best.name)
        fingerprints = {entry.model: entry.fingerprint for entry in known}
        if draft.model.info.fingerprint.hex() != fingerprints[draft.name]:
            return None
        log.info("%s (measured before)", choice.why)
        return draft

    async def _entry(self, draft: Draft, sample: DraftSample) -> ProfileEntry:
        if draft.tokenizer_fingerprint != sample.tokenizer_fingerprint:
            raise NoFit(
                f"the draft model's tokenizer does not fit the target {sample.target_model}"
            )
        return ProfileEntry(
            model=draft.name,
            fingerprint=draft.model.info.fingerprint.hex(),
            machine=self._machine,
            target=_target(sample),
            acceptance=await self._run(lambda: first_guess_acceptance(draft.model, sample)),
            level_time_s=draft.measured.level_time_s(DrafterSettings().growth.beam_width),
        )


def _target(sample: DraftSample) -> str:
    digest = blake2b(msgspec.msgpack.encode(sample.cases), digest_size=8).hexdigest()
    return f"{sample.target_model} {digest}"


def _load(path: Path) -> list[ProfileEntry]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        return msgspec.json.decode(data, type=list[ProfileEntry])[:MAX_ENTRIES]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        log.warning("the profile in %s cannot be read, none is used: %s", path, error)
        return []
