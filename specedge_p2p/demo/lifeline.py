"""Runs a module as `python -m` does, and ends it when the process that started it is gone.

``python -m specedge_p2p.demo.lifeline MODULE ARGUMENT...`` with a pipe as its standard input, whose
other end the starter holds. However the starter dies, the kernel closes that end, and the end of
the input is seen here. (Linux has PR_SET_PDEATHSIG for this, but it looks at the thread that
started the process, and trio's threads come and go.)
"""

import os
import runpy
import signal
import sys
import threading
import time

STDIN = 0
LEAVE_S = 10.0
"""From the wish that the module leaves until it is killed."""


def main() -> None:
    threading.Thread(target=_leave_with_starter, name="lifeline", daemon=True).start()
    module = sys.argv[1]
    del sys.argv[0]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _leave_with_starter() -> None:
    while os.read(STDIN, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LEAVE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
