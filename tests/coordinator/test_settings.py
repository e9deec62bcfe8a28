"""What the options of `serve` become."""

import pytest

from coordinator.scheduler.plan import FixedTree
from coordinator.settings import parse_tree
from specedge_p2p.errors import ClearError


def test_an_engines_tree_is_fixed_or_left_to_what_pays() -> None:
    assert parse_tree("off") is None
    assert parse_tree("auto") is None
    assert parse_tree("3x4") == FixedTree(depth=3, width=4)
    assert parse_tree("32x64") == FixedTree(32, 64)


@pytest.mark.parametrize(
    "text", ["", "3", "x", "3x", "0x4", "3x65", "33x4", "-3x4", "3x4x5", "3.5x4"]
)
def test_other_trees_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ClearError, match="3x4"):
        parse_tree(text)
