"""The join loop: find a coordinator, serve it, come back after every loss until told to leave."""

import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from node.drafter import Drafter
from node.hardware import Benchmark
from node.link import ReplayLink, backoff_s
from node.link_life import LinkEnd, Refused, RunIo, RunLevel
from node.receipts import ReceiptBook
from node.selection import NoFit, check_tokenizer, draft_models_for, in_order
from node.settings import AUTO, NodeSettings
from node.slow_link import slowed
from node.unfit import UnfitCoordinators
from node.worker import (
    Worker,
    WorkerSettings,
    run_io_in_thread,
    run_level_in_thread,
)
from specedge_p2p.identity.record import CoordinatorRecord
from specedge_p2p.lm.ports import LanguageModel, ModelError
from specedge_p2p.overlay.discovery import FoundCoordinator, peer_of
from specedge_p2p.overlay.ports import DRAFT_PROTOCOL, Link, Overlay, OverlayError
from specedge_p2p.tree.growth import GrowthSettings

log = logging.getLogger(__name__)

FINAL_REFUSALS = frozenset({"tokenizer", "version", "not-allowed", "banned"})
"""Codes of Refuse after which it is no use to ask again; after others the node soon does."""

STAY_S = 5.0
"""A link without work that lasted so long was meant."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A loaded and measured draft model."""

    name: str
    model: LanguageModel
    tokenizer_fingerprint: bytes
    measured: Benchmark


@dataclass(frozen=True, slots=True)
class JoinPorts:
    """What the join loop asks of the world.

    Args:
        overlay: the running participant.
        find: the coordinators that answer now.
        prepare: loads and measures a draft model by name.
        receipts: the node's book.
        jitter: a number in [0, 1), new at every call.
        run_level, run_io: run what blocks.
        pick: prepares the best of several draft models; None takes the first.
    """

    overlay: Overlay
    find: Callable[[], Awaitable[Sequence[FoundCoordinator]]]
    prepare: Callable[[str], Awaitable[Draft]]
    receipts: ReceiptBook
    jitter: Callable[[], float]
    run_level: RunLevel = run_level_in_thread
    run_io: RunIo = run_io_in_thread
    clock: Callable[[], float] = time.perf_counter
    pick: Callable[[Sequence[str], FoundCoordinator], Awaitable[Draft]] | None = None


class JoinLoop:
    """Runs until `leave`.

    A coordinator that cannot use this node, or says so, costs itself: it is left out for a while
    and the next one is asked. Only what the user named can end the loop: a draft model that cannot
    be loaded raises ModelError; where no welcome ever came, and all that were found and all that
    were given by hand are unfit, the first one's reason is raised, Refused, NoFit or ModelError.
    """

    def __init__(self, settings: NodeSettings, ports: JoinPorts, software: str = "") -> None:
        self._settings = settings
        self._ports = ports
        self._software = software
        self._worker: Worker | None = None
        self._draft: Draft | None = None
        self._taken_for: CoordinatorRecord | None = None
        self._unfit = UnfitCoordinators()
        self._scope = trio.CancelScope()
        self._capacity = settings.max_sessions
        self._is_leaving = False
        self._is_linked = False
        self._next_try_s: float | None = None
        self._num_links = 0
        self._end: LinkEnd | Refused | None = None
        """Of the last link; None where there was none."""

    @property
    def worker(self) -> Worker | None:
        """None before the draft model is loaded."""
        return self._worker

    @property
    def draft_model(self) -> str:
        """Name of the one taken; "" before it is loaded."""
        return "" if self._draft is None else self._draft.name

    @property
    def is_linked(self) -> bool:
        """Whether there is a link to a coordinator now."""
        return self._is_linked

    @property
    def next_try_s(self) -> float | None:
        """When coordinators are asked again, by trio's clock; None while they are."""
        return self._next_try_s

    def set_capacity(self, max_sessions: int) -> None:
        """How many sessions to take from now on; 0 pauses new ones."""
        self._capacity = max_sessions
        if self._worker is not None:
            self._worker.set_capacity(max_sessions)

    def leave(self) -> None:
        """End soon: with a farewell and a flush on an open link, else at once."""
        self._is_leaving = True
        if self._worker is not None and self._is_linked:
            self._worker.leave()
        else:
            self._scope.cancel()

    async def run(self) -> None:
        num_failures = 0
        with self._scope:
            named = self._settings.draft_models
            if len(named) == 1 and AUTO not in named:  # a mistake in its name shows at once
                self._take(await self._ports.prepare(named[0]))
            while not self._is_leaving:
                has_served = await self._one_round()
                num_failures = 0 if has_served else num_failures + 1
                if not self._is_leaving:
                    pause_s = backoff_s(max(0, num_failures - 1), self._ports.jitter())
                    pause_s *= self._settings.stretch
                    log.info("next try in %.1f s", pause_s)
                    self._next_try_s = trio.current_time() + pause_s
                    await trio.sleep_until(self._next_try_s)
                    self._next_try_s = None

    async def _one_round(self) -> bool:
        """Ask every coordinator that fits, best first, until one is served; whether one was."""
        found = await self._ports.find()
        if not found:
            tried = ", ".join(self._settings.coordinators) or "any address known so far"
            log.warning("no coordinator answers at %s", tried)
        for candidate in in_order(found, self._settings.coordinators):
            if self._problem(candidate.record) is None:
                has_served = await self._try(candidate)
                is_broken = self._end is LinkEnd.BROKEN  # and would be for the next one, too
                if self._is_leaving or has_served or is_broken:
                    return has_served
        self._look_back(found)
        return False

    async def _try(self, candidate: FoundCoordinator) -> bool:
        """Whether it could use this node; one that cannot is remembered.

        One that says welcome and closes the link at once could not: the others are asked then, and
        the waits double.
        """
        record = candidate.record
        self._end = None
        try:
            worker = self._worker_at_hand(record) or await self._new_worker(candidate)
            num_welcomes, num_sent = worker.num_welcomes, worker.stats.num_sent
            began_s = trio.current_time()
            await self._serve(worker, candidate)
        except (ModelError, NoFit, Refused) as problem:
            if isinstance(problem, ModelError) and AUTO not in self._settings.draft_models:
                raise  # none of the user's own models can be loaded, whoever asks for it
            if self._unfit.note(record, problem, trio.current_time()):
                log.warning("%s is left out: %s", candidate.address, problem)
            return False
        has_drafted = worker.stats.num_sent > num_sent
        has_stayed = trio.current_time() - began_s >= STAY_S
        is_welcome = worker.num_welcomes > num_welcomes and self._end is not LinkEnd.BROKEN
        return is_welcome and (has_drafted or has_stayed)

    def _problem(self, record: CoordinatorRecord) -> Exception | None:
        return self._unfit.problem(record, trio.current_time())

    def _look_back(self, found: Sequence[FoundCoordinator]) -> None:
        """After a round without a welcome: end where all that the user named is of no use."""
        by_hand = self._settings.coordinators
        problems = [self._problem(candidate.record) for candidate in in_order(found, by_hand)]
        first, *others = problems or [None]
        if first is None or None in others:
            return
        has_served = self._worker is not None and self._worker.num_welcomes
        given = {peer_of(address) for address in by_hand}
        if given and not has_served and given <= {each.record.peer_id for each in found}:
            raise first
        log.warning("none of the coordinators found can use this node: %d", len(found))

    def _worker_at_hand(self, record: CoordinatorRecord) -> Worker | None:
        """None where a draft model is to be loaded. Raises NoFit."""
        if self._worker is None or self._draft is None:
            return None
        fingerprint = self._draft.tokenizer_fingerprint
        if self._is_taken_in_vain and fingerprint not in record.tokenizer_fingerprints:
            self._let_go()
            return None
        check_tokenizer(record, fingerprint)
        return self._worker

    @property
    def _is_taken_in_vain(self) -> bool:
        """Whether the draft model was loaded for a coordinator that then refused this node."""
        if self._worker is None or self._worker.num_welcomes or self._taken_for is None:
            return False
        return AUTO in self._settings.draft_models and self._problem(self._taken_for) is not None

    def _let_go(self) -> None:
        """Of the draft model, before another one takes the memory."""
        self._worker = self._draft = self._taken_for = None
        gc.collect()  # a worker is part of a cycle

    async def _new_worker(self, candidate: FoundCoordinator) -> Worker:
        """Raises NoFit and ModelError."""
        record = candidate.record
        names = draft_models_for(self._settings.draft_models, record)
        if len(names) == 1 or self._ports.pick is None:
            draft = await self._ports.prepare(names[0])
        else:
            draft = await self._ports.pick(names, candidate)
        check_tokenizer(record, draft.tokenizer_fingerprint)
        self._taken_for = record
        return self._take(draft)

    def _take(self, draft: Draft) -> Worker:
        self._draft = draft
        self._worker = Worker(
            Drafter(draft.model, times=draft.measured.level_times(), clock=self._ports.clock),
            WorkerSettings(
                draft_model=draft.name,
                model_fingerprint=draft.model.info.fingerprint,
                tokenizer_fingerprint=draft.tokenizer_fingerprint,
                max_sessions=self._settings.max_sessions,
                level_time_s=draft.measured.level_time_s(GrowthSettings().beam_width),
                software=self._software,
            ),
            self._ports.receipts,
            self._ports.run_level,
            self._ports.run_io,
        )
        self._worker.set_capacity(self._capacity)
        return self._worker

    async def _serve(self, worker: Worker, candidate: FoundCoordinator) -> None:
        """Raises Refused where it is of no use to ask again."""
        log.info("joining %s", candidate.address)
        try:
            async with self._link(candidate.address) as link:
                self._is_linked = True
                self._end = await _served(worker, link)
        except OverlayError as error:
            log.warning("cannot reach %s: %s", candidate.address, error)
        finally:
            self._is_linked = False
        end = self._end
        if isinstance(end, Refused):
            if end.code in FINAL_REFUSALS:
                raise end
            log.warning("refused (%s): %s", end.code, end)
        elif end is not None:
            level = logging.INFO if end is LinkEnd.LEFT else logging.WARNING
            log.log(level, "the link ended: %s", end.value)

    @asynccontextmanager
    async def _link(self, address: str) -> AsyncIterator[Link]:
        settings = self._settings
        self._num_links += 1
        async with (
            self._ports.overlay.dial(address, DRAFT_PROTOCOL) as raw,
            slowed(raw, settings.link_conditions(self._num_links)) as link,
        ):
            yield ReplayLink(link) if settings.drafting == "replay" else link


async def _served(worker: Worker, link: Link) -> LinkEnd | Refused:
    """A refusal as a value: an exception would leave the link's nursery wrapped in a group."""
    try:
        return await worker.serve(link)
    except Refused as refused:
        return refused
