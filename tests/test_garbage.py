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


ENDING = """
from specedge_p2p.garbage import look_for_cycles_rarely

class Thing:
    def __del__(self):
        print("taken apart")

thing = Thing()
thing.itself = thing
for _ in range(2):
    look_for_cycles_rarely()
"""


def test_what_was_kept_is_taken_apart_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"taken apart\n", b"")


def test_trees_are_not_searched_for_cycles() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
