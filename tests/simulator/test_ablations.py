"""What ideas of the policy are worth, in few tokens; `tests/soak` has the figures themselves."""

import numpy as np

from specedge_p2p.tree.binding import BindLimits, SourceTree
from specedge_p2p.tree.draft_tree import Candidates
from specedge_p2p.tree.ngram import NgramGuess
from specedge_p2p.tree.received_tree import ReceivedTree
from tests.simulator.ablations import ablations, bind_in_order_of_arrival
from tests.simulator.traces import demo_book


def test_the_order_of_rows_and_shared_noise_are_worth_what_they_should() -> None:
    checks = ablations(demo_book(), num_tokens=1536)
    assert [check.name for check in checks] == ["order", "noise/T0.7", "noise/T1"]
    for check in checks:
        assert check.value > max(1.0, check.bound - 2 * check.error), check


def test_rows_in_order_of_arrival_are_the_first_that_were_sent() -> None:
    tree = ReceivedTree(1, 10, (), root_token=7)
    columns = Candidates(
        np.array([11, 12, 13, 14], np.int32),
        np.array([0, 0, 1, 2], np.int32),
        np.array([-3.0, -0.1, -4.0, -0.1], np.float32),
    )
    tree.extend(1, columns)
    source = SourceTree(5, tree)
    limits = BindLimits(row_price=0.5, max_rows=3, max_depth=2)
    bound = bind_in_order_of_arrival(7, [source], NgramGuess(0, ()), 0.0, limits)
    assert bound.token_ids == [7, 11, 12, 13]
    assert bound.parents == [-1, 0, 0, 1]
    assert bound.depths == [0, 1, 1, 2]
    tree.commit([12])
    bound = bind_in_order_of_arrival(12, [source], NgramGuess(0, ()), 0.0, limits)
    assert bound.token_ids == [12, 14]
    tree.commit([99])
    assert len(bind_in_order_of_arrival(99, [source], NgramGuess(0, ()), 0.0, limits)) == 1
