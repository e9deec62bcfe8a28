"""How a node finds coordinators, and how a coordinator lets itself be found.

Sources, in this order: addresses given by hand, the last coordinators known, provider records in
the DHT. A source only says where to ask; what counts is the signed record that the coordinator
itself hands over. Forged, expired, outdated or somebody else's records are dropped with a log line.
"""

import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import trio

from specedge_p2p.identity.record import CoordinatorRecord, RecordError, open_record
from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import RECORD_PROTOCOL, Link, LinkClosed, Overlay, OverlayError
from specedge_p2p.wire.errors import ProtocolError

_log = logging.getLogger(__name__)

COORDINATOR_KEY: Final = "specedge/coord/1"
ASK_S: Final = 8.0
"""For dialling one address and getting its record."""
ANSWER_S: Final = 5.0
"""How long one who asks for the record may take."""
MAX_PARALLEL_DIALS: Final = 8
MAX_CANDIDATES: Final = 64
MAX_KNOWN: Final = 32
MAX_FILE_BYTES: Final = 256 * 1024
ANNOUNCE_S: Final = 300.0
RETRY_FIRST_S: Final = 0.5
RETRY_LAST_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class FoundCoordinator:
    record: CoordinatorRecord
    address: str
    """Where it answered, with `/p2p/<peer id>`."""
    round_trip_s: float
    """Of asking for the record, once connected."""


class KnownCoordinator(msgspec.Struct, frozen=True):
    """What is remembered of a coordinator between runs."""

    peer_id: str
    address: str


class KnownCoordinators:
    """The last coordinators known, in a small JSON file; the most recently met first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _load(path)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(known.address for known in self._known.values())

    def remember(self, found: Sequence[FoundCoordinator]) -> None:
        """Put these first and write the file. A disk that fails costs a warning, no more."""
        for coordinator in reversed(found):
            peer_id = coordinator.record.peer_id
            self._known.pop(peer_id, None)
            fresh = KnownCoordinator(peer_id, coordinator.address)
            self._known = {peer_id: fresh, **self._known}
        for peer_id in list(self._known)[MAX_KNOWN:]:
            del self._known[peer_id]
        try:
            _write(self._path, msgspec.json.encode(list(self._known.values())))
        except OSError as error:
            _log.warning("cannot remember coordinators in %s: %s", self._path, error.strerror)


@asynccontextmanager
async def serve_record(
    overlay: Overlay, current_record: Callable[[], bytes]
) -> AsyncIterator[None]:
    """Hand the sealed record to whoever asks, while the context is open."""

    async def answer(link: Link) -> None:
        with trio.move_on_after(ANSWER_S):
            await link.receive()
            await link.send(current_record())

    async with overlay.serve(RECORD_PROTOCOL, answer):
        yield


async def announce(overlay: Overlay, *, period_s: float = ANNOUNCE_S) -> None:
    """Say in the DHT that this peer is a coordinator: as soon as anybody listens, then for ever."""
    wait_s = RETRY_FIRST_S
    while True:
        try:
            await overlay.provide(COORDINATOR_KEY)
        except OverlayError as error:
            _log.debug("not announced yet: %s", error)
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_LAST_S)
        else:
            wait_s = RETRY_FIRST_S
            await trio.sleep(period_s)


Missed = Callable[[str, str], None]
"""Gets an address that gave no valid record, and why."""


def _untold(address: str, reason: str) -> None:
    """For who does not want to know."""


async def find_coordinators(
    overlay: Overlay,
    *,
    by_hand: Sequence[str] = (),
    known: KnownCoordinators | None = None,
    now_s: Callable[[], float],
    missed: Missed = _untold,
) -> list[FoundCoordinator]:
    """Ask every source in turn and return who answered with a valid record, each once.

    Those given by hand come first, then by round trip. An address that is malformed or does not
    answer costs a log line: it must not hide the good ones.

    Args:
        overlay: where to ask.
        by_hand: addresses from the user.
        known: from earlier runs; what is found is remembered there.
        now_s: Unix time, against which records expire.
        missed: told of every address that is asked in vain.
    """
    remembered = known.addresses if known is not None else ()
    first = list(dict.fromkeys((*by_hand, *remembered)))[:MAX_CANDIDATES]
    found = await _ask_all(overlay, first, now_s, missed)
    try:
        provided = await overlay.find_providers(COORDINATOR_KEY)
    except OverlayError as error:
        _log.info("the DHT gave no coordinators: %s", error)
        provided = ()
    answered = {coordinator.record.peer_id for coordinator in found}
    more = [
        address
        for address in dict.fromkeys(provided)
        if address not in first and peer_of(address) not in answered
    ]
    found += await _ask_all(overlay, more[:MAX_CANDIDATES], now_s, missed)
    found = _newest(found)
    given = {peer_of(address) for address in by_hand}
    found.sort(key=lambda each: (each.record.peer_id not in given, each.round_trip_s))
    if known is not None and found:
        known.remember(found)
    return found


async def fetch_record(
    overlay: Overlay, address: str, now_s: Callable[[], float]
) -> FoundCoordinator:
    """Ask one coordinator for its record. Raises OverlayError, RecordError or ProtocolError."""
    async with overlay.dial(address, RECORD_PROTOCOL) as link:
        start_s = trio.current_time()
        await link.send(b"")
        sealed = await link.receive()
        round_trip_s = trio.current_time() - start_s
    record = open_record(sealed, now_s())
    if record.peer_id != link.peer_id:
        raise RecordError(f"is about {record.peer_id}, but {link.peer_id} handed it over")
    return FoundCoordinator(record, address, round_trip_s)


def peer_of(address: str) -> PeerId:
    return PeerId(address.rpartition("/p2p/")[2])


async def _ask_all(
    overlay: Overlay, addresses: Sequence[str], now_s: Callable[[], float], missed: Missed
) -> list[FoundCoordinator]:
    found: list[FoundCoordinator] = []
    limit = trio.CapacityLimiter(MAX_PARALLEL_DIALS)

    async def ask(address: str) -> None:
        async with limit:
            coordinator = await _ask(overlay, address, now_s, missed)
            if coordinator is not None:
                found.append(coordinator)

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(ask, address)
    return found


async def _ask(
    overlay: Overlay, address: str, now_s: Callable[[], float], missed: Missed
) -> FoundCoordinator | None:
    level, reason = logging.INFO, ""
    try:
        with trio.fail_after(ASK_S):
            return await fetch_record(overlay, address, now_s)
    except* trio.TooSlowError:
        reason = f"no answer within {ASK_S:g} s"
    except* (RecordError, ProtocolError) as group:
        level, reason = logging.WARNING, f"record dropped: {group.exceptions[0]}"
    except* LinkClosed:
        reason = "it handed over no record"
    except* OverlayError as group:
        reason = str(group.exceptions[0])
    _log.log(level, "%s: %s", address, reason)
    missed(address, reason)
    return None


def _newest(found: Sequence[FoundCoordinator]) -> list[FoundCoordinator]:
    """One per coordinator: the newest record, and of equal ones the quickest answer.

    Numbers of earlier times count for nothing: each record comes from the coordinator itself just
    now, and after its clock was set back it would have been locked out for as long.
    """
    best: dict[str, FoundCoordinator] = {}
    for each in found:
        peer_id = each.record.peer_id
        other = best.get(peer_id)
        rank = (-each.record.sequence, each.round_trip_s)
        if other is None or rank < (-other.record.sequence, other.round_trip_s):
            best[peer_id] = each
    return list(best.values())


def _load(path: Path) -> dict[str, KnownCoordinator]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        known = msgspec.json.decode(data, type=list[KnownCoordinator])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("known coordinators in %s cannot be read, none used: %s", path, error)
        return {}
    return {each.peer_id: each for each in known[:MAX_KNOWN]}


def _write(path: Path, data: bytes) -> None:
    """Replace the file in one step, so that a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
