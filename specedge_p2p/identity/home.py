"""The folder of one process: two with one key would take each other's place."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specedge_p2p.identity.keys import IdentityError


@contextmanager
def only_process(home: Path, what: str) -> Iterator[None]:
    """Make the folder and hold it as long as the context is open.

    Args:
        home: folder of key and books.
        what: "node" or "coordinator", for the message.

    Raises:
        IdentityError: the folder cannot be used, or another process holds it.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("w")
    except OSError as error:
        raise IdentityError(f"cannot use the folder {home}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise IdentityError(
                f"another {what} runs from {home}; give this one its own --home"
            ) from None
        yield
