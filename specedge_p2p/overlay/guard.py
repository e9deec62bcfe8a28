"""The one guard around every link handler."""

import logging

import trio

from specedge_p2p.overlay.ports import Link, LinkClosed, LinkHandler
from specedge_p2p.wire.errors import ProtocolError

_log = logging.getLogger(__name__)


async def run_guarded(handler: LinkHandler, link: Link, protocol: str) -> None:
    """Run a handler on its link, then close the link. An exception ends this link and no other.

    Cancellation passes through. `except*` looks into the groups that a handler's nursery raises.
    """
    try:
        await handler(link)
    except* LinkClosed as group:
        _log.debug("link of %s to %s ended: %s", protocol, link.peer_id, _first(group))
    except* ProtocolError as group:
        _log.warning("%s broke %s: %s", link.peer_id, protocol, _first(group))
    except* Exception:  # noqa: BLE001 - the one place where any failure of a handler ends
        _log.exception("handler of %s failed; its link to %s is closed", protocol, link.peer_id)
    finally:
        # aclose() is bounded in time, so the shield is too.
        with trio.CancelScope(shield=True):
            await link.aclose()


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
