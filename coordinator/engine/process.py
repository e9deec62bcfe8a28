"""`python -m coordinator.engine.process`: what the coordinator starts; see child.py."""

import sys

from coordinator.engine.child import run_child

if __name__ == "__main__":
    sys.exit(run_child(sys.argv[1:]))
