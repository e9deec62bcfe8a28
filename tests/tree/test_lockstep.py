from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.lockstep import LockstepRounds, LockstepTerms


def grown(rounds: LockstepRounds, num_levels: int) -> LockstepRounds:
    for _ in range(num_levels):
        rounds.grown()
    return rounds


def test_a_proposal_is_due_after_its_levels_and_only_once() -> None:
    rounds = grown(LockstepRounds(LockstepTerms(levels=2, vertices=3)), 1)
    assert not rounds.may_propose
    assert rounds.room(100) == 0
    rounds.grown()
    assert rounds.may_propose
    assert [rounds.room(room) for room in (100, 2, 0)] == [3, 2, 0]
    rounds.proposed()
    assert not rounds.may_propose
    assert rounds.room(100) == 0


def test_all_vertices_are_sent_where_no_number_is_set() -> None:
    assert grown(LockstepRounds(LockstepTerms(levels=1)), 1).room(100) == 100


def test_only_proactive_drafting_grows_while_a_verdict_is_awaited() -> None:
    for is_proactive in (True, False):
        rounds = LockstepRounds(LockstepTerms(1, 8, is_proactive))
        assert rounds.may_grow
        rounds.grown()
        assert rounds.may_grow is is_proactive
        rounds.proposed()
        assert rounds.may_grow is is_proactive
        rounds.begin(0)
        assert rounds.may_grow


def test_what_lies_below_the_new_root_counts_as_grown() -> None:
    rounds = grown(LockstepRounds(LockstepTerms(levels=3)), 3)
    rounds.proposed()
    rounds.begin(2)
    assert not rounds.may_propose
    assert grown(rounds, 1).may_propose


def test_what_cannot_grow_proposes_what_it_has() -> None:
    rounds = LockstepRounds(LockstepTerms(levels=3))
    rounds.stuck()
    assert rounds.may_propose
    rounds.begin(0)
    assert not rounds.may_propose


def test_a_lost_proposal_is_made_again() -> None:
    rounds = grown(LockstepRounds(LockstepTerms(levels=1)), 1)
    rounds.proposed()
    rounds.again()
    assert rounds.may_propose


def test_a_node_that_was_overtaken_says_quickly_that_it_is_there() -> None:
    rounds = LockstepRounds(LockstepTerms(levels=3))
    rounds.begin(0)  # the first verdict may well come before the first proposal
    assert not grown(rounds, 1).may_propose
    rounds.begin(0)
    assert grown(rounds, 1).may_propose
    rounds.proposed()
    rounds.begin(0)
    assert not grown(rounds, 1).may_propose


@given(
    st.lists(st.sampled_from(["grown", "stuck", "propose", "again", "begin"]), max_size=60),
    st.integers(1, 6),
    st.booleans(),
)
def test_no_order_of_events_ends_in_waiting_for_oneself(
    events: list[str], levels: int, is_proactive: bool
) -> None:
    """Whatever happened, a node that is not waiting for a verdict grows or proposes."""
    rounds = LockstepRounds(LockstepTerms(levels, 8, is_proactive))
    num_sent = 0
    for event in events:
        if event == "propose" and rounds.room(256):
            rounds.proposed()
            num_sent += 1
            assert num_sent == 1  # one proposal for every verdict or loss
        elif event in ("grown", "stuck"):
            getattr(rounds, event)()
        elif event == "again":
            rounds.again()
            num_sent = 0
        elif event == "begin":
            rounds.begin(levels // 2)
            num_sent = 0
        assert num_sent or rounds.may_grow or rounds.may_propose
