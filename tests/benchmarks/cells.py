"""The cells of the pipeline benchmark: what is served, and which bounds must hold."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from tests.benchmarks.figures import CheckSpec, ChoiceSpec, Metric
from tests.benchmarks.servings import AUTO_NGRAM, NGRAM, NodeGroup, Serving, Situation

A100 = Situation("a100-32b", 0.7, 8, ("3x4", "3x2"), ("2x4", "1x8"), 4.0)
A100_GREEDY = Situation("a100-32b", 0.0, 8, ("3x4", "4x4"), ("1x4", "1x8"), 4.0)
A100_MANY = Situation("a100-32b", 0.7, 24, ("2x4", "3x2"), ("1x4", "1x8"), 4.0)
A100_ONE = Situation("a100-32b", 0.7, 1, ("3x8", "4x8"), ("2x8", "3x8"), 2.0)
H200 = Situation("h200-14b", 0.7, 8, ("2x4", "2x8"), ("1x4", "1x8"), 6.0)
BIG = Situation("big-70b", 0.7, 8, ("4x8", "4x4"), ("3x4", "3x8"), 2.0)
PAPER_4 = Situation("paper-32b", 0.7, 4, ("4x8", "4x4"), ("3x8", "3x4"), 2.0)
CPU_ONE = Situation("", 0.7, 1, (), (), 1.0, num_turns=2)
CPU_MANY = Situation("", 0.7, 8, (), (), 1.0, num_turns=8)
SITUATIONS = (A100, A100_GREEDY, A100_MANY, A100_ONE, H200, BIG, PAPER_4, CPU_ONE, CPU_MANY)

SMALL_DRAFT, LARGE_DRAFT = "demo-draft", "demo-target"
SMALL, LARGE = NodeGroup(4), NodeGroup(4, "large-12ms", (LARGE_DRAFT,))
EITHER = NodeGroup(
    4,
    f"{SMALL_DRAFT}=rtx4090-1.7b,{LARGE_DRAFT}=large-12ms",
    (SMALL_DRAFT, LARGE_DRAFT),
)
USELESS = ("--drafting", "random")
NO_NGRAM = "--no-ngram"
BEST_TREE_DEPTH_12 = "12x8"

NODES_STRETCH = 12.0
"""Hides the work of eight node processes on two cores behind 6 ms levels."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What one name stands for.

    Args:
        servings: all that its checks compare; those shared with other cells run once.
    """

    name: str
    servings: tuple[Serving, ...]
    checks: tuple[CheckSpec | ChoiceSpec, ...]

    def without(self, names: Set[str]) -> "Cell":
        """Without these servings, on either side."""
        servings = tuple(serving for serving in self.servings if serving.name not in names)
        checks = tuple(
            replace(check, against=tuple(name for name in check.against if name not in names))
            if isinstance(check, CheckSpec)
            else check
            for check in self.checks
        )
        return Cell(self.name, servings, checks)


def best_cells() -> list[Cell]:
    """As `all_cells`, of the fixed trees only the best of each situation."""
    second = {name for situation in SITUATIONS for name in situation.second_trees()}
    return [cell.without(second) for cell in all_cells()]


def all_cells() -> list[Cell]:
    """The most telling first, and those that share servings side by side."""
    return [
        *_equal(),
        *_capped(),
        *_lockstep(),
        _wide(),
        *_floors(),
        _paper(),
        _second_draft(),
        _choice(),
        *_many_and_one(),
    ]


def _equal() -> list[Cell]:
    bounds = (
        ("a100-32b", A100, 1.18, 1.25, 0.85),
        ("a100-32b/T0", A100_GREEDY, 1.20, 1.40, None),
        ("big-70b", BIG, 1.10, 1.15, 0.91),
        ("h200-14b", H200, 1.00, 1.03, 1.0),
    )
    cells = []
    for name, where, with_ngram, without, itl in bounds:
        ours = _ours(where, 8)
        bare = _ours(where, 8, NO_NGRAM)
        checks = [
            _faster(f"equal/{name}/ngram", ours, where.with_ngram(), with_ngram),
            _faster(f"equal/{name}/none", bare, where.without_ngram(), without),
        ]
        if itl is not None:
            checks.append(_below(f"itl/{name}", ours, where.with_ngram(), itl, "itl"))
            checks.append(_below(f"itl/{name}/p95", ours, where.with_ngram(), 1.0, "p95_gap"))
        cells.append(Cell(f"equal/{name}", (*where.alone(), ours, bare), tuple(checks)))
    return cells


def _many_and_one() -> list[Cell]:
    many = _ours(A100_MANY, 4)
    one = _ours(A100_ONE, 1, stretch=6.0)
    return [
        Cell(
            "many/a100-32b",
            (*A100_MANY.alone(), many),
            (_faster("many/a100-32b", many, A100_MANY.with_ngram(), 1.17),),
        ),
        Cell(
            "one/a100-32b",
            (*A100_ONE.alone(), one),
            (_faster("one/a100-32b", one, A100_ONE.with_ngram(), 1.10),),
        ),
    ]


def _capped() -> list[Cell]:
    """24 sessions of which a step takes 8: without volunteers that is as fast as 8 sessions."""
    cells = []
    for name, where, with_ngram, without in (
        ("h200-14b", H200, 1.5, 1.8),
        ("a100-32b", A100, 1.5, 1.7),
    ):
        ours = _capped_serving(where, "capped")
        bare = _capped_serving(where, "capped-no-ngram", NO_NGRAM)
        checks = [
            _faster(f"capped/{name}/ngram", ours, where.with_ngram(), with_ngram),
            _faster(f"capped/{name}/none", bare, where.without_ngram(), without),
        ]
        if name == "h200-14b":
            checks.append(_below(f"capped/{name}/p95", ours, (), 200.0, "p95_gap_ms"))
        cells.append(Cell(f"capped/{name}", (*where.alone(), ours, bare), tuple(checks)))
    return cells


def _lockstep() -> list[Cell]:
    cells = []
    for name, where, shapes, bound in (
        ("a100-32b", A100, ("3x16:8", "4x16:8"), 1.3),
        ("h200-14b", H200, ("1x8:8", "2x8:8"), 1.35),
    ):
        bare = _ours(where, 8, NO_NGRAM)
        rivals = [where.lockstep(shape, (_nodes(8),), stretch=NODES_STRETCH) for shape in shapes]
        check = _faster(f"lockstep/{name}", bare, tuple(r.name for r in rivals), bound)
        cells.append(Cell(f"lockstep/{name}", (bare, *rivals), (check,)))
    return cells


def _paper() -> Cell:
    """SpecEdge's own regime: a full engine and twice as many sessions as it takes."""
    nodes = (NodeGroup(8, "paper-node", round_trip_ms=14.5),)
    capped = ("--max-batch", "4")
    bare = PAPER_4.ours("ours-8-in-flight", nodes, *capped, NO_NGRAM, stretch=6.0, num_sessions=8)
    lockstep = PAPER_4.lockstep("6x32:4", nodes, *capped, stretch=6.0)
    lockstep = Serving(lockstep.name, lockstep.network, 8, 0.7)
    quick = PAPER_4.ours(
        "ours-4-in-flight", (NodeGroup(4, "paper-node", round_trip_ms=14.5),), stretch=5.0
    )
    deep = PAPER_4.tree(BEST_TREE_DEPTH_12)
    trees = tuple(PAPER_4.tree(tree) for tree in PAPER_4.trees)
    best = tuple(tree.name for tree in trees)
    checks = (
        _faster("paper/best-tree", bare, best, 1.6),
        _faster("paper/depth-12", bare, (deep.name,), 2.05),
        _below("paper/itl", quick, best, 0.87, "itl"),
        _faster("paper/itl/throughput", quick, best, 1.15),
    )
    return Cell("paper", (*trees, deep, bare, lockstep, quick), checks)


def _wide() -> Cell:
    wide = _ours(A100, 8, NO_NGRAM)
    chain = A100.ours(
        "chain-no-ngram", (_nodes(8),), NO_NGRAM, "--node-beam", "1", stretch=NODES_STRETCH
    )
    check = _faster("wide/a100-32b", wide, (chain.name,), 1.15)
    return Cell("wide/a100-32b", (wide, chain), (check,))


def _floors() -> list[Cell]:
    useless = (_nodes(8, *USELESS),)
    churn = (_nodes(8, "--link-churn-s", "2"),)
    far = (NodeGroup(8, round_trip_ms=100.0),)
    cases = (
        ("floor/a100-32b/useless", A100, A100.ours("useless", useless, stretch=NODES_STRETCH)),
        ("floor/h200-14b/100ms", H200, H200.ours("100ms", far, stretch=NODES_STRETCH)),
        ("floor/a100-32b/churn", A100, A100.ours("churn", churn, stretch=NODES_STRETCH)),
    )
    cells = [_floor(name, where, ours, 0.97) for name, where, ours in cases]
    capped = H200.ours(
        "capped-useless",
        (_nodes(4, *USELESS),),
        *("--max-batch", "8"),
        stretch=NODES_STRETCH,
        num_sessions=24,
    )
    cells.append(_floor("floor/h200-14b/capped-useless", H200, capped, 0.93))
    for name, where in (("floor/cpu/1", CPU_ONE), ("floor/cpu/8", CPU_MANY)):
        nodes = (NodeGroup(2, "", round_trip_ms=0.0),)
        cells.append(_floor(name, where, where.ours("ours", nodes, stretch=1.0), 0.97))
    return cells


def _second_draft() -> Cell:
    """A second node with another draft model; the larger one is the demo target itself."""
    small, large = _with_draft(A100, "small-draft", SMALL), _with_draft(A100, "large-draft", LARGE)
    both = _with_draft(A100, "both-drafts", SMALL, LARGE)
    check = _faster("second-draft", both, (small.name, large.name), 1.0)
    return Cell("second-draft", (small, large, both), (check,))


def _choice() -> Cell:
    """Nodes that have both draft models take the one that is measured to be better there."""
    servings: list[Serving] = []
    cases = []
    for where in (A100, BIG, H200):
        each = [_with_draft(where, "small-draft", SMALL), _with_draft(where, "large-draft", LARGE)]
        either = _with_draft(where, "either-draft", EITHER)
        servings += [*each, either]
        cases.append((either.name, tuple(serving.name for serving in each)))
    return Cell("choice", tuple(servings), (ChoiceSpec("choice", tuple(cases)),))


def _with_draft(where: Situation, mode: str, *nodes: NodeGroup) -> Serving:
    return where.ours(mode, nodes, stretch=NODES_STRETCH, num_sessions=4)


def _floor(name: str, where: Situation, ours: Serving, bound: float) -> Cell:
    return Cell(
        name,
        (*where.alone(), ours),
        (_faster(name, ours, (f"{where.name}/{AUTO_NGRAM}", f"{where.name}/{NGRAM}"), bound),),
    )


def _nodes(count: int, *arguments: str) -> NodeGroup:
    return NodeGroup(count, arguments=arguments)


def _ours(where: Situation, num_nodes: int, *serve: str, stretch: float = NODES_STRETCH) -> Serving:
    mode = "ours-no-ngram" if NO_NGRAM in serve else "ours"
    return where.ours(mode, (_nodes(num_nodes),), *serve, stretch=stretch)


def _capped_serving(where: Situation, mode: str, *serve: str) -> Serving:
    return where.ours(
        mode,
        (_nodes(4),),
        *("--max-batch", "8"),
        *serve,
        stretch=NODES_STRETCH,
        num_sessions=24,
    )


def _faster(name: str, over: Serving, against: Sequence[str], bound: float) -> CheckSpec:
    return CheckSpec(name, (over.name,), tuple(against), bound)


def _below(
    name: str, over: Serving, against: Sequence[str], bound: float, metric: Metric
) -> CheckSpec:
    return CheckSpec(name, (over.name,), tuple(against), bound, metric, at_least=False)
