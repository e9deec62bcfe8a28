"""The overlay inside one process, in virtual time: links with latency that can be cut at will.

Nothing here starts a task of its own, sleeps for real or reads a clock but trio's, so a whole
swarm runs under `autojump_clock`. What a link does is what `libp2p_host` promises: order,
back-pressure, a close that flushes, a dead peer that is only noticed by who waits for it.
"""

import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from specedge_p2p.names import PeerId
from specedge_p2p.overlay.guard import run_guarded
from specedge_p2p.overlay.ports import LinkClosed, LinkHandler, OverlayError
from specedge_p2p.wire.messages import MAX_FRAME_BYTES

MAX_QUEUED_FRAMES: Final = 256
"""Frames of one direction of one link that are on their way or unread; more make `send` wait."""


@dataclass(slots=True)
class _Wire:
    """One direction between two peers."""

    latency_s: float
    jitter_s: float
    is_stalled: bool = False


@dataclass(slots=True)
class _Pipe:
    """One direction of one link. None in the queue is the end of the stream."""

    wire: _Wire
    jitter: Callable[[], float]
    queue: deque[tuple[float, bytes | None]] = field(default_factory=deque)
    changed: trio.Event = field(default_factory=trio.Event)
    last_due_s: float = 0.0
    ended_at_s: float | None = None
    """When the end of the stream arrives at the reader."""
    is_broken: bool = False

    def put(self, frame: bytes | None) -> None:
        delay_s = self.wire.latency_s + self.wire.jitter_s * self.jitter()
        # Jitter never reorders: nothing arrives before what was sent earlier.
        self.last_due_s = max(self.last_due_s, trio.current_time() + delay_s)
        self.queue.append((self.last_due_s, frame))
        if frame is None:
            self.ended_at_s = self.last_due_s
        self.touch()

    def touch(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def break_(self) -> None:
        self.is_broken = True
        self.queue.clear()
        self.touch()


class MemoryLink:
    """One end of a link; see `ports.Link`."""

    def __init__(self, peer_id: PeerId, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._peer_id = peer_id
        self._outgoing = outgoing
        self._incoming = incoming
        self._is_closed = False

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    async def send(self, frame: bytes) -> None:
        if len(frame) > MAX_FRAME_BYTES:
            raise OverlayError(f"a frame has at most {MAX_FRAME_BYTES} bytes, not {len(frame)}")
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open(self._outgoing)
            end_s = self._incoming.ended_at_s
            if end_s is not None and end_s <= trio.current_time():
                raise LinkClosed(f"{self._peer_id} closed the link")
            if len(self._outgoing.queue) < MAX_QUEUED_FRAMES:
                self._outgoing.put(frame)
                return
            await _wait_for_change(self._outgoing, end_s)

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        pipe = self._incoming
        while True:
            self._check_open(pipe)
            due_s = pipe.queue[0][0] if pipe.queue and not pipe.wire.is_stalled else None
            if due_s is not None and due_s <= trio.current_time():
                _, frame = pipe.queue[0]
                if frame is None:
                    raise LinkClosed(f"{self._peer_id} closed the link")
                pipe.queue.popleft()
                pipe.touch()
                return frame
            await _wait_for_change(pipe, due_s)

    async def aclose(self) -> None:
        """Close at once; what was sent still arrives, then the other end sees the close."""
        if not self._is_closed:
            self._is_closed = True
            if not self._outgoing.is_broken:
                self._outgoing.put(None)
            self._incoming.break_()
        await trio.lowlevel.checkpoint()

    def break_(self) -> None:
        """What a dead connection does: both directions end now, and what was under way is lost."""
        self._outgoing.break_()
        self._incoming.break_()

    def touch(self) -> None:
        """Let both ends look again whether something has arrived."""
        self._outgoing.touch()
        self._incoming.touch()

    @property
    def is_over(self) -> bool:
        return self._is_closed or self._outgoing.is_broken

    def _check_open(self, pipe: _Pipe) -> None:
        if self._is_closed:
            raise LinkClosed("the link was closed here")
        if pipe.is_broken:
            raise LinkClosed(f"the connection to {self._peer_id} was lost")


async def _wait_for_change(pipe: _Pipe, until_s: float | None) -> None:
    with trio.CancelScope() as scope:
        if until_s is not None:
            scope.deadline = max(until_s, trio.current_time())
        await pipe.changed.wait()


class MemoryOverlay:
    """One participant; see `ports.Overlay`."""

    def __init__(self, network: "MemoryNetwork", peer_id: PeerId) -> None:
        self._network = network
        self._peer_id = peer_id
        self._handlers: dict[str, tuple[LinkHandler, trio.Nursery]] = {}

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return (address_of(self._peer_id),)

    @asynccontextmanager
    async def serve(self, protocol: str, handler: LinkHandler) -> AsyncIterator[None]:
        if protocol in self._handlers:
            raise OverlayError(f"{protocol} is served already")
        async with trio.open_nursery() as nursery:
            self._handlers[protocol] = (handler, nursery)
            try:
                yield
            finally:
                del self._handlers[protocol]
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def dial(self, address: str, protocol: str) -> AsyncIterator[MemoryLink]:
        _, found, peer = address.rpartition("/p2p/")
        if not found:
            raise OverlayError(f"{address} names no peer (/p2p/...)")
        link = await self._network.connect(self, PeerId(peer), protocol)
        try:
            yield link
        finally:
            with trio.CancelScope(shield=True):
                await link.aclose()

    async def provide(self, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self._network.providers.setdefault(key, {})[self._peer_id] = None

    async def find_providers(self, key: str) -> tuple[str, ...]:
        """Who announced the key; dead peers too, as in a real DHT."""
        await trio.sleep(2 * self._network.latency_s)
        found = self._network.providers.get(key, {})
        return tuple(address_of(peer) for peer in found if peer != self._peer_id)

    def accept(self, protocol: str, link: MemoryLink) -> None:
        entry = self._handlers.get(protocol)
        if entry is None:
            raise OverlayError(f"{self._peer_id} does not speak {protocol}")
        handler, nursery = entry
        nursery.start_soon(run_guarded, handler, link, protocol)


class MemoryNetwork:
    """All participants and the weather between them.

    Args:
        latency_s: one way, between any two peers unless `set_latency` says otherwise.
        jitter_s: at most this much more, drawn anew for each frame.
        seed: of the generator that draws it.
    """

    def __init__(self, *, latency_s: float = 0.005, jitter_s: float = 0.0, seed: int = 0) -> None:
        self.latency_s = latency_s
        self.providers: dict[str, dict[PeerId, None]] = {}
        self._jitter_s = jitter_s
        self._random = random.Random(seed)  # noqa: S311 - weather, not a secret
        self._overlays: dict[PeerId, MemoryOverlay] = {}
        self._wires: dict[tuple[PeerId, PeerId], _Wire] = {}
        self._cuts: set[frozenset[PeerId]] = set()
        self._links: dict[frozenset[PeerId], list[MemoryLink]] = {}

    def join(self, peer_id: PeerId) -> MemoryOverlay:
        """A new participant; after `kill` a peer may join again."""
        if peer_id in self._overlays:
            raise OverlayError(f"{peer_id} has joined already")
        overlay = self._overlays[peer_id] = MemoryOverlay(self, peer_id)
        return overlay

    def set_latency(
        self, sender: PeerId, receiver: PeerId, latency_s: float, jitter_s: float = 0.0
    ) -> None:
        """Of one direction, for frames sent from now on."""
        wire = self._wire(sender, receiver)
        wire.latency_s, wire.jitter_s = latency_s, jitter_s

    def stall(self, sender: PeerId, receiver: PeerId) -> None:
        """Nothing arrives any more in this direction, and nobody is told: a half-open peer."""
        self._wire(sender, receiver).is_stalled = True

    def resume(self, sender: PeerId, receiver: PeerId) -> None:
        """End a stall; what waited arrives."""
        self._wire(sender, receiver).is_stalled = False
        for link in self._links.get(frozenset((sender, receiver)), ()):
            link.touch()

    def drop_links(self, one: PeerId, other: PeerId) -> None:
        """Break the links of two peers; they may dial again at once."""
        for link in self._links.pop(frozenset((one, other)), ()):
            link.break_()

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Break the links of two peers, and let no dial through until `heal`."""
        self._cuts.add(frozenset((one, other)))
        self.drop_links(one, other)

    def heal(self, one: PeerId, other: PeerId) -> None:
        self._cuts.discard(frozenset((one, other)))

    def partition(self, group: Iterable[PeerId]) -> None:
        """Cut every connection between the peers of `group` and the others; see `heal_all`."""
        inside = set(group)
        for one in inside:
            for other in set(self._overlays) - inside:
                self.cut(one, other)

    def heal_all(self) -> None:
        self._cuts.clear()

    def kill(self, peer_id: PeerId) -> None:
        """A process that dies: its links break, and nobody answers at its address."""
        self._overlays.pop(peer_id, None)
        for pair in [pair for pair in self._links if peer_id in pair]:
            for link in self._links.pop(pair):
                link.break_()

    async def connect(self, dialler: MemoryOverlay, peer: PeerId, protocol: str) -> MemoryLink:
        """One round trip, then a link, or OverlayError."""
        here = dialler.peer_id
        there, back = self._wire(here, peer), self._wire(peer, here)
        await trio.sleep(there.latency_s + back.latency_s)
        pair = frozenset((here, peer))
        target = self._overlays.get(peer)
        if here == peer:
            raise OverlayError("a peer does not dial itself")
        if target is None or pair in self._cuts or self._overlays.get(here) is not dialler:
            raise OverlayError(f"{peer} cannot be reached")
        outgoing, incoming = _Pipe(there, self._random.random), _Pipe(back, self._random.random)
        link = MemoryLink(peer, outgoing, incoming)
        target.accept(protocol, MemoryLink(here, incoming, outgoing))
        links = [old for old in self._links.get(pair, ()) if not old.is_over]
        self._links[pair] = [*links, link]
        return link

    def _wire(self, sender: PeerId, receiver: PeerId) -> _Wire:
        return self._wires.setdefault((sender, receiver), _Wire(self.latency_s, self._jitter_s))


def address_of(peer_id: PeerId) -> str:
    return f"/memory/p2p/{peer_id}"
