import math

from specedge_p2p.tree.binding import SourceTree
from specedge_p2p.tree.first_guess import Seen, first_guess
from tests.support.trees import received

HALF = math.log(0.5)
QUARTER = math.log(0.25)


def test_a_trees_first_level_is_scored_against_the_choice() -> None:
    tree = received((1, [(0, 1, HALF), (0, 2, QUARTER), (1, 3, HALF)]))
    source = SourceTree(3, tree, factor=0.1)
    hit, miss = first_guess(source, 2), first_guess(source, 3)
    assert hit is not None
    assert math.isclose(hit.predicted, 0.75, rel_tol=1e-6)  # the factor is left out
    assert (hit.is_hit, miss) == (True, Seen(hit.predicted, False))
    greedy = SourceTree(3, received((1, [(0, 1, 0.0), (0, 2, 0.0)])))
    assert first_guess(greedy, 1) == Seen(1.0, True)
    tree.commit([1, 3])
    assert first_guess(source, 3) is None  # nothing was guessed here
    tree.commit([8])
    assert first_guess(source, 3) is None
