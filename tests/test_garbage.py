"""The collector's settings; in a process of its own, for they are everybody's."""

import subprocess
import sys

SCRIPT = """
import gc, weakref
from specedge_p2p.garbage import look_for_cycles_rarely

class Thing: pass

def cycle():
    thing = Thing()
    thing.itself = thing
    return weakref.ref(thing), thing

ref, kept = cycle()
look_for_cycles_rarely()
assert gc.get_freeze_count() > 1000
num_looks = gc.get_stats()[0]["collections"]
lists = [[] for _ in range(10_000)]
assert gc.get_stats()[0]["collections"] == num_looks
del kept
look_for_cycles_rarely()
assert ref() is None, "what was frozen once and has gone since is found"
"""


def test_trees_are_not_searched_for_cycles() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
