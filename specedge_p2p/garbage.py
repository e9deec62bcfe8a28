"""Python's garbage collector in processes that have to answer within a millisecond."""

import atexit
import gc

_NEW_OBJECTS = 50_000
_ROUNDS = 20


def look_for_cycles_rarely() -> None:
    """To be called when everything is loaded, again after other things were.

    What is there stays and is not looked through again, which would take tens of milliseconds at
    a time. Of what comes trees are the most, some ten thousand vertices: they have no cycles, and
    go when the last reference does. So a look every few hundred new objects, as it is by default,
    would find nothing and take longer the more sessions there are.

    When the process ends all is looked through again: what stayed would be called a leak by
    libraries that count their objects then, as triton's does in some seventy lines.
    """
    gc.unfreeze()  # of an earlier call: what has gone since
    gc.collect()
    gc.freeze()
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)
    gc.set_threshold(_NEW_OBJECTS, _ROUNDS, _ROUNDS)
