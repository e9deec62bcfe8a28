"""`specedge-node profile`: measure draft models here, and say which is worth most and why."""

import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import trio
from rich.console import Console
from rich.table import Table

from node.choice import Choice
from node.drafter import DrafterSettings
from node.join import Draft
from node.models import machine_text, prepare_draft
from node.profile import DraftChooser, ProfileFile
from node.selection import NoFit, draft_models_for
from node.settings import AUTO, NodeSettings, SettingsError
from node.unreached import WHAT_TO_CHECK
from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay.discovery import (
    FoundCoordinator,
    KnownCoordinators,
    find_coordinators,
)
from specedge_p2p.overlay.libp2p_host import open_overlay
from specedge_p2p.overlay.ports import Overlay
from specedge_p2p.overlay.sample import SampleError, fetch_sample

log = logging.getLogger(__name__)


async def run_profile(settings: NodeSettings, console: Console) -> None:
    """Measure and print. Raises what `run_node` raises, and KeyboardInterrupt when told to stop.

    Python's own KeyboardInterrupt would come up in any task, also in one that loses it.
    """
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, scope)
            await _profile(settings, console)
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        raise KeyboardInterrupt


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def _profile(settings: NodeSettings, console: Console) -> None:
    identity = Identity.load_or_create(settings.key_file)
    known = KnownCoordinators(settings.known_file)
    if AUTO in settings.draft_models and not (
        settings.coordinators or settings.bootstrap or known.addresses
    ):
        raise SettingsError(
            "no coordinator is known yet: give --coordinator ADDRESS, as a coordinator prints it at"
            " its start, or --draft-model NAME to time that one alone"
        )
    missed: dict[str, str] = {}
    async with open_overlay(
        identity, listen=(), bootstrap=settings.bootstrap, dht="client"
    ) as overlay:
        found = await find_coordinators(
            overlay,
            by_hand=settings.coordinators,
            known=known,
            now_s=time.time,
            missed=missed.__setitem__,
        )
        if found:
            await _profile_for(settings, overlay, found[0], console)
        else:
            await _profile_alone(settings, _nobody(settings, missed), console)


async def _profile_for(
    settings: NodeSettings, overlay: Overlay, found: FoundCoordinator, console: Console
) -> None:
    names = draft_models_for(settings.draft_models, found.record)
    try:
        sample = await fetch_sample(overlay, found.address)
    except SampleError as error:
        console.print(f"{found.address} cannot be compared for: {error}", soft_wrap=True)
        await _times_alone(settings, names, console)
        return
    chooser = DraftChooser(
        overlay,
        lambda name: load(settings, name, console),
        run_blocking,
        ProfileFile(settings.profile_file),
        machine_text(settings),
        settings.link_delay_s * settings.stretch,
    )
    around = chooser.surroundings(sample, found)
    show(await chooser.measure(names, sample, around), console)
    console.print(f"kept in {settings.profile_file}", soft_wrap=True)


def _nobody(settings: NodeSettings, missed: Mapping[str, str]) -> str:
    """That there is no coordinator, and why as far as the user can do something about it."""
    wrong = [
        f"{address} ({missed[address]})" for address in settings.coordinators if address in missed
    ]
    if wrong:
        return f"no coordinator answers at {', '.join(wrong)}; {WHAT_TO_CHECK}"
    if missed or settings.bootstrap:
        return "no coordinator answers at any address known so far; --coordinator names one"
    return "no coordinator was asked; --coordinator names one"


async def _profile_alone(settings: NodeSettings, nobody: str, console: Console) -> None:
    names = [name for name in settings.draft_models if name != AUTO]
    if not names:
        raise NoFit(f"{nobody}, or --draft-model a model to time alone")
    console.print(f"{nobody}. Only the level times are measured:", soft_wrap=True)
    await _times_alone(settings, names, console)


async def _times_alone(settings: NodeSettings, names: Sequence[str], console: Console) -> None:
    for name in names:
        draft = await load(settings, name, console)
        width = DrafterSettings().growth.beam_width
        level_ms = draft.measured.level_time_s(width) * 1000
        console.print(f"{name}: a level of {width} vertices takes {level_ms:.1f} ms")


def show(choice: Choice, console: Console) -> None:
    """The table, the choice and why."""
    table = Table("draft model", "first guess right", "level", "pays up to", "tokens per step")
    for row in choice.rows:
        pays_ms = None if row.break_even_s is None else row.break_even_s * 1000
        table.add_row(
            row.measured.name,
            f"{row.measured.acceptance:.1%}",
            f"{row.measured.level_time_s * 1000:.1f} ms",
            "-" if pays_ms is None else f"{pays_ms:.1f} ms",
            f"+{row.gain:.2f}",
        )
    console.print(table)
    console.print(choice.why, soft_wrap=True)


async def load(settings: NodeSettings, name: str, console: Console) -> Draft:
    log.info("loading the draft model %s", name)
    # trio-stubs, which libp2p brings along, are older than trio.
    draft: Draft = await trio.to_thread.run_sync(  # type: ignore[call-arg]
        prepare_draft, name, settings, console, time.perf_counter, abandon_on_cancel=True
    )
    return draft


async def run_blocking(measure: Callable[[], float]) -> float:
    """Runs a measurement; whoever leaves does not wait for it."""
    # trio-stubs, which libp2p brings along, are older than trio.
    measured: float = await trio.to_thread.run_sync(  # type: ignore[call-arg]
        measure, abandon_on_cancel=True
    )
    return measured
