"""What the rest of the program may ask of the peer-to-peer overlay."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from specedge_p2p.errors import ClearError
from specedge_p2p.names import PeerId

DRAFT_PROTOCOL = "/specedge/draft/1"
RECORD_PROTOCOL = "/specedge/record/1"
"""Asks a coordinator for its signed record: one empty frame there, one frame back."""


class OverlayError(ClearError):
    """The overlay cannot do what was asked; the text says what to do."""


class LinkClosed(OverlayError):
    """The other side or the network ended the link; nothing more can be sent or received on it."""


class Link(Protocol):
    """One bidirectional, ordered stream of frames to an authenticated peer."""

    @property
    def peer_id(self) -> PeerId: ...

    async def send(self, frame: bytes) -> None:
        """Queue a frame (at most MAX_FRAME_BYTES). Waits while the bounded queue is full.

        Cancelling is safe: a frame is queued whole or not at all. Raises LinkClosed.
        """
        ...

    async def receive(self) -> bytes:
        """The next frame. Cancelling is safe. Raises LinkClosed; ProtocolError for bad framing."""
        ...

    async def aclose(self) -> None:
        """Close after flushing what is queued, bounded in time; idempotent."""
        ...


LinkHandler = Callable[[Link], Awaitable[None]]


class Overlay(Protocol):
    """A running participant of the overlay."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses with `/p2p/<peer id>` on which this participant listens."""
        ...

    def serve(self, protocol: str, handler: LinkHandler) -> AbstractAsyncContextManager[None]:
        """Accept links of `protocol` while the context is open.

        Each link runs in a task of its own behind the one guard: an exception of the handler ends
        that link and nothing else; the link is closed when the handler returns.
        """
        ...

    def dial(self, address: str, protocol: str) -> AbstractAsyncContextManager[Link]:
        """Open a link to a multiaddress with `/p2p/<peer id>`. Raises OverlayError."""
        ...

    async def provide(self, key: str) -> None:
        """Announce in the DHT that this peer provides `key`."""
        ...

    async def find_providers(self, key: str) -> tuple[str, ...]:
        """Addresses (with peer id) of peers that announced `key`; unverified, de-duplicated."""
        ...
