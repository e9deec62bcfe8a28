"""The ways to serve that are compared, by name.

* `A` plain, `N` with the engine's n-gram guesses;
* `B:DxW` a fixed tree of D levels of W vertices that the engine drafts itself, `BN:DxW` with
  n-gram guesses as well; `E` and `EN` the same with levels only where they pay;
* `C-` continuous drafting by volunteers, `C` with n-gram guesses;
* `H-` and `H` the same beside an engine that drafts where that pays;
* `L:DxV` lock-step drafting by volunteers: D levels, then one proposal of V vertices; `:nopro` and
  `:N` may follow (see `coordinator/settings.py`); `LN:DxV` with n-gram guesses.
"""

import re
from dataclasses import replace

from coordinator.scheduler.plan import FixedTree
from coordinator.settings import Lockstep
from tests.simulator.world import NodePlan, WorldPlan

OWN_DRAFT = "small"
SHAPES = tuple(f"{depth}x{width}" for depth in (1, 2, 3, 4, 5) for width in (1, 2, 4, 8))
FEW_SHAPES = ("1x2", "1x4", "2x2", "2x4", "3x4", "4x4", "4x8", "5x8")
"""Enough for a table; what the best of the others has on these, volunteers are overstated by."""
_MODE = re.compile(r"(A|N|E|EN|C-?|H-?|(BN?):(\d+)x(\d+)|(LN?):(.+))")


def plan_of(mode: str, base: WorldPlan, nodes: tuple[NodePlan, ...]) -> WorldPlan:
    """The world `base` in a mode; `nodes` where it has volunteers. Raises ValueError."""
    found = _MODE.fullmatch(mode)
    if found is None:
        raise ValueError(f"{mode!r} is no mode: see tests/simulator/modes.py")
    kind = found[2] or found[5] or mode
    is_drafting = kind in ("B", "BN", "E", "EN", "H", "H-")
    return replace(
        base,
        nodes=nodes if kind[0] in "CHL" else (),
        has_ngram=kind in ("N", "BN", "EN", "C", "H", "LN"),
        engine_draft=OWN_DRAFT if is_drafting else "",
        tree=FixedTree(int(found[3]), int(found[4])) if found[2] else None,
        lockstep=Lockstep.parse(found[6]) if found[5] else None,
    )
