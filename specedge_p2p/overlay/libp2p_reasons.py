"""What libp2p's exceptions mean, in words for a person."""

from collections.abc import Iterator

from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey


def why_not(error: BaseException) -> str:
    """Why there is no connection, on one line.

    The library tells of a wrong address in its own terms only: keys that do not correspond, a read
    that ended early.
    """
    for each in _chain(error):
        if isinstance(each, PeerIDMismatchesPubkey):
            # The library has the peer id in its text alone, at the end.
            return f"another peer answers there, {str(each).rpartition('=')[2]}"
        if isinstance(each, MultiselectError):
            return "what answers there is no peer of this network, or it hung up"
        if isinstance(each, ConnectionRefusedError):
            return "nothing listens there, the connection was refused"
    return cause(error)


def cause(error: BaseException) -> str:
    """The innermost reason, on one line."""
    *_, innermost = _chain(error)
    return " ".join(str(innermost).split()) or type(innermost).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it; of several attempts the first."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        yield from _chain(error.exceptions[0])
    elif error.__cause__ is not None:
        yield from _chain(error.__cause__)
