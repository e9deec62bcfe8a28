"""What was measured of draft models on this machine, kept between runs, and the choice by it."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from node.acceptance import first_guess_acceptance
from node.choice import Choice, Measured, Surroundings, choose
from node.drafter import DrafterSettings
from node.join import Draft
from node.selection import NoFit, check_tokenizer
from node.unfit import without_frames
from specedge_p2p.identity.record import CoordinatorRecord
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
        """The best of several models; the first that fits where the coordinator gives no sample.

        Raises ModelError where none can be loaded, NoFit where none has the target's tokenizer.
        """
        try:
            sample = await fetch_sample(self._overlay, coordinator.address)
        except SampleError as error:
            log.info("draft models cannot be compared: %s", error)
            return await self._first_that_fits(names, coordinator.record)
        around = self.surroundings(sample, coordinator)
        draft = await self._known_best(names, sample, around)
        if draft is None:
            choice = await self.measure(names, sample, around)
            log.info("%s", choice.why)
            draft = await self._prepare(choice.best.name)
        return draft

    def surroundings(self, sample: DraftSample, coordinator: FoundCoordinator) -> Surroundings:
        return Surroundings(
            sample.target_model,
            sample.step_time_s,
            coordinator.round_trip_s + self._added_round_trip_s,
        )

    async def measure(
        self, names: Sequence[str], sample: DraftSample, around: Surroundings
    ) -> Choice:
        """Load and measure one model after the other, each alone in memory.

        A model takes a cache as large as the memory that is free: beside another it would have
        less than it has in the end, and would leave the other's share to nobody.
        """
        entries: list[ProfileEntry] = []
        problems: list[Exception] = []
        for name in names:
            try:
                entries.append(await self._measured(name, sample))
            except (ModelError, NoFit) as error:
                problems.append(_left_out(name, error))
        if not entries:
            raise _most_telling(problems)
        self._profiles.remember(entries)
        return choose([entry.measured for entry in entries], around)

    async def _first_that_fits(self, names: Sequence[str], record: CoordinatorRecord) -> Draft:
        problems: list[Exception] = []
        for name in names:
            try:
                return await self._fitting(name, record)
            except (ModelError, NoFit) as error:
                problems.append(_left_out(name, error))
        raise _most_telling(problems)

    async def _fitting(self, name: str, record: CoordinatorRecord) -> Draft:
        draft = await self._prepare(name)
        check_tokenizer(record, draft.tokenizer_fingerprint)
        return draft

    async def _known_best(
        self, names: Sequence[str], sample: DraftSample, around: Surroundings
    ) -> Draft | None:
        """The best by what was measured before, unless it has changed or is gone."""
        target = _target(sample)
        entries = [self._profiles.find(name, self._machine, target) for name in names]
        known = [entry for entry in entries if entry is not None]
        if len(known) < len(names):
            return None
        choice = choose([entry.measured for entry in known], around)
        try:
            draft = await self._prepare(choice.best.name)
        except ModelError:  # it is gone: measuring leaves it out, and says why
            return None
        fingerprints = {entry.model: entry.fingerprint for entry in known}
        if draft.model.info.fingerprint.hex() != fingerprints[draft.name]:
            return None
        log.info("%s (measured before)", choice.why)
        return draft

    async def _measured(self, name: str, sample: DraftSample) -> ProfileEntry:
        """The model itself is gone when this returns."""
        draft = await self._prepare(name)
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


def _left_out(name: str, error: Exception) -> Exception:
    log.warning("%s is left out: %s", name, error)
    return without_frames(error)


def _most_telling(problems: Sequence[Exception]) -> Exception:
    """A model that does not fit here may fit elsewhere; one that cannot be loaded fits nowhere."""
    for problem in problems:
        if isinstance(problem, NoFit):
            return problem
    return problems[0] if problems else NoFit("there is no draft model to choose from")


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
