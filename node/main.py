"""The composition root of a node: builds the parts, joins, shows how it goes, leaves cleanly."""

import logging
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import trio
from rich.console import Console
from rich.live import Live
from rich.text import Text

from node.emulation import EmulatedDrafts
from node.governor import Governor
from node.join import Draft, JoinLoop, JoinPorts
from node.models import machine_text, prepare_draft
from node.profile import DraftChooser, ProfileFile
from node.profiling import run_blocking
from node.receipts import ReceiptBook
from node.report import write_report
from node.settings import NodeSettings, SettingsError
from node.status import Connection, Snapshot, status_line
from node.unreached import GivenAddresses
from node.worker import WorkerStats
from specedge_p2p.errors import ClearError
from specedge_p2p.garbage import look_for_cycles_rarely
from specedge_p2p.identity.home import only_process
from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay.discovery import (
    FoundCoordinator,
    KnownCoordinators,
    find_coordinators,
)
from specedge_p2p.overlay.libp2p_host import open_overlay
from specedge_p2p.overlay.ports import Overlay
from specedge_p2p.plural import counted
from specedge_p2p.version import software_version

log = logging.getLogger(__name__)

LEAVE_S = 1.5
"""Time for farewell and flush; after that the node goes without them."""
Show = Callable[[str], None]
_STATUS_S = 0.5
_LOG_EVERY_S = 10.0


async def run_node(settings: NodeSettings, console: Console) -> None:
    """Join and draft until SIGINT or SIGTERM.

    Raises ClearError, with one line that says what to do.
    """
    emulated = EmulatedDrafts(settings.emulate, settings.stretch)
    with ExitStack() as stack:
        stack.enter_context(only_process(settings.home, "node"))
        identity = Identity.load_or_create(settings.key_file)
        book = stack.enter_context(closing(ReceiptBook(settings.receipts_file, identity.peer_id)))
        log.info("this node is %s", identity.peer_id)
        failure: BaseException | None = None
        with trio.CancelScope() as scope:
            async with open_overlay(
                identity, listen=(), bootstrap=settings.bootstrap, dht="client"
            ) as overlay:
                failure = await _Node(settings, overlay, book, console, scope, emulated).run()
        if failure is not None:
            raise failure


class _Node:
    """The running parts of one process."""

    def __init__(
        self,
        settings: NodeSettings,
        overlay: Overlay,
        book: ReceiptBook,
        console: Console,
        scope: trio.CancelScope,
        emulated: EmulatedDrafts,
    ) -> None:
        self._settings = settings
        self._emulated = emulated
        self._overlay = overlay
        self._console = console
        self._scope = scope
        self._is_prepared = trio.Event()
        self._known = KnownCoordinators(settings.known_file)
        self._given = GivenAddresses(settings.coordinators)
        randomness = random.SystemRandom()
        self._chooser = DraftChooser(
            overlay,
            self._load,
            run_blocking,
            ProfileFile(settings.profile_file),
            machine_text(settings),
            settings.link_delay_s * settings.stretch,
        )
        ports = JoinPorts(
            overlay, self._find, self._prepare, book, randomness.random, pick=self._pick
        )
        self._loop = JoinLoop(settings, ports, software=software_version("specedge-node"))
        self._governor = Governor(settings.max_sessions, self._set_capacity)

    async def run(self) -> BaseException | None:
        """Runs until told to leave; what ended it otherwise is returned, bare of its nursery."""
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey_signals)
            nursery.start_soon(self._show_status)
            try:
                await self._loop.run()
            except ClearError as error:
                failure = error
            finally:
                self._report()
            nursery.cancel_scope.cancel()
        return failure

    def _report(self) -> None:
        settings, worker = self._settings, self._loop.worker
        if settings.report is None:
            return
        stats, num_links = (
            (WorkerStats(), 0) if worker is None else (worker.stats, worker.num_welcomes)
        )
        try:
            write_report(
                settings.report,
                self._loop.draft_model,
                settings,
                stats,
                num_links,
                self._emulated.tally,
            )
        except OSError as error:
            log.error("the report could not be written: %s", error)

    async def _find(self) -> list[FoundCoordinator]:
        settings = self._settings
        if not (settings.coordinators or settings.bootstrap or self._known.addresses):
            raise SettingsError(
                "no coordinator is known yet: give --coordinator ADDRESS, as a coordinator prints "
                "it at its start, or --bootstrap ADDRESS"
            )
        found = await find_coordinators(
            self._overlay,
            by_hand=settings.coordinators,
            known=self._known,
            now_s=time.time,
            missed=self._given.missed,
        )
        for each in found:
            self._given.answered(each.address)
        return found

    async def _prepare(self, name: str) -> Draft:
        draft = await self._load(name)
        self._prepared()
        return draft

    async def _pick(self, names: Sequence[str], coordinator: FoundCoordinator) -> Draft:
        draft = await self._chooser.pick(names, coordinator)
        self._emulated.tally.clear()  # of the trial
        self._prepared()
        return draft

    def _prepared(self) -> None:
        look_for_cycles_rarely()
        self._is_prepared.set()

    async def _load(self, name: str) -> Draft:
        log.info("loading the draft model %s", name)
        # trio-stubs, which libp2p brings along, are older than trio.
        draft: Draft = await trio.to_thread.run_sync(  # type: ignore[call-arg]
            prepare_draft,
            name,
            self._settings,
            self._console,
            time.perf_counter,
            self._emulated.device(name),
            abandon_on_cancel=True,
        )
        log.info("measured, vertices per level: %s", draft.measured)
        return draft

    def _set_capacity(self, max_sessions: int) -> None:
        log.info("takes %s from now on", counted(max_sessions, "session"))
        self._loop.set_capacity(max_sessions)

    async def _obey_signals(self) -> None:
        """SIGINT, SIGTERM: leave; once more: leave at once. SIGUSR1: pause or go on."""
        is_leaving = False
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) as signals:
            async for number in signals:
                if number == signal.SIGUSR1:
                    self._governor.toggle()
                elif is_leaving:
                    self._scope.cancel()
                else:
                    is_leaving = True
                    log.info("leaving")
                    self._scope.deadline = trio.current_time() + LEAVE_S
                    self._loop.leave()

    async def _show_status(self) -> None:
        await self._is_prepared.wait()  # until then the screen is the progress bar's
        if self._console.is_terminal:
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                await self._status_loop(_STATUS_S, lambda t: live.update(Text(t), refresh=True))
        else:
            await self._status_loop(_LOG_EVERY_S, lambda t: log.info("%s", t))

    async def _status_loop(self, every_s: float, show: Show) -> None:
        before = Snapshot(trio.current_time(), WorkerStats())
        while True:
            await trio.sleep(every_s)
            worker = self._loop.worker
            now = Snapshot(trio.current_time(), WorkerStats() if worker is None else worker.stats)
            connection = Connection(self._loop.is_linked, self._loop.next_try_s)
            show(status_line(before, now, connection, is_paused=self._governor.is_paused))
            before = now
