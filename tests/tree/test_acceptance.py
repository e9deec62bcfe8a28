from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.acceptance import Accepted, accept


def judged(parents: list[int], token_ids: list[int], choices: list[int]) -> Accepted:
    return accept(parents, token_ids, choices)


def test_a_plain_row_yields_the_targets_own_token() -> None:
    assert judged([-1], [5], [9]) == Accepted((), 9)


def test_the_path_ends_where_the_target_disagrees() -> None:
    parents, token_ids = [-1, 0, 0, 2, 3], [5, 6, 7, 8, 9]
    assert judged(parents, token_ids, [7, 0, 8, 1, 2]) == Accepted((2, 3), 1)
    assert judged(parents, token_ids, [7, 0, 8, 9, 2]) == Accepted((2, 3, 4), 2)
    assert judged(parents, token_ids, [1, 6, 8, 9, 2]) == Accepted((), 1)


@given(st.data())
def test_law1_output_accepted_path_is_the_longest_that_agrees(data: st.DataObject) -> None:
    rows: list[tuple[int, int]] = [(-1, 0)]
    for _ in range(data.draw(st.integers(0, 12))):
        row = (data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 3)))
        if row not in rows:
            rows.append(row)
    choices = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))

    def agrees(row: int) -> bool:
        parent, token_id = rows[row]
        return row == 0 or (choices[parent] == token_id and agrees(parent))

    def path(row: int) -> tuple[int, ...]:
        return () if row == 0 else (*path(rows[row][0]), row)

    longest = max((path(row) for row in range(len(rows)) if agrees(row)), key=len)
    result = judged([parent for parent, _ in rows], [token for _, token in rows], choices)
    assert result.path == longest
    assert result.bonus_token == choices[longest[-1] if longest else 0]
