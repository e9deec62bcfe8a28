"""The limits of one session, at their edge: the sender must not and the receiver does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.wire import messages as m
from specedge_p2p.wire.codec import AnyMessage, encode_frame
from specedge_p2p.wire.columns import pack_tokens
from specedge_p2p.wire.errors import IllegalSend, ProtocolError
from tests.support.links import (
    OPEN,
    VOCAB_SIZE,
    Ends,
    changed,
    opened,
    proposal,
    verdict,
    with_session,
)

MAX_UNVERIFIED = OPEN.wishes.max_unverified


def refused_by_both(ends: Ends, message: AnyMessage) -> str:
    """The error that both ends agree on."""
    from_node = isinstance(message, m.Proposal | m.Release)
    sender = ends.node if from_node else ends.coordinator
    receiver = ends.coordinator if from_node else ends.node
    with pytest.raises(ProtocolError) as caught:
        receiver.receive(encode_frame([message]))
    with pytest.raises(IllegalSend) as refused:
        sender.send(message)
    assert str(refused.value) == str(caught.value)
    return caught.value.code


def chain(count: int, **numbers: int) -> m.Proposal:
    first = numbers.get("first_index", 1)
    return proposal([7] * count, [first - 1 + i for i in range(count)], **numbers)


def star(count: int, **numbers: int) -> m.Proposal:
    return proposal(list(range(count)), [0] * count, **numbers)


# --- prompt --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (m.Prompt(1, 1, pack_tokens([1])), "bad-prompt"),
        (m.Prompt(1, 0, pack_tokens([1, 2, 3, 4])), "bad-prompt"),
        (m.Prompt(1, 0, b"1234"), "bad-column"),
        (m.Prompt(1, 0, pack_tokens([VOCAB_SIZE])), "bad-token"),
        (verdict([4]), "bad-verdict"),
        (proposal([4], [0]), "bad-proposal"),
    ],
)
def test_before_the_prompt_is_complete(message: AnyMessage, code: str) -> None:
    ends = opened()
    ends.answer(OPEN)
    assert ends.node.room(1) == 0
    assert not ends.node.session(1).is_ready
    assert refused_by_both(ends, message) == code


def test_verdicts_of_others_stand_between_chunks() -> None:
    ends = with_session()
    ends.answer(changed(OPEN, session_no=2))
    ends.answer(m.Prompt(2, 0, pack_tokens([1])), verdict([4]))
    ends.answer(m.Tune(2, m.GrowthWishes(max_unverified=20)))
    ends.answer(m.Prompt(2, 1, pack_tokens([2, 3])), verdict([5], session_no=2))
    assert (ends.node.committed(1), ends.node.committed(2)) == (4, 4)
    assert refused_by_both(ends, m.Prompt(2, 3, pack_tokens([1]))) == "bad-prompt"


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (verdict([4], 2), "bad-verdict"),
        (verdict([4], 4), "bad-verdict"),
        (verdict([4] * 98), "bad-verdict"),
        (verdict([4], num_accepted=2), "bad-verdict"),
        (verdict([4], restart_tree_no=2), "bad-verdict"),
        (verdict([VOCAB_SIZE]), "bad-token"),
        (m.Verdict(1, 1, 3, b"ab", 0), "bad-column"),
        (m.Tune(1, m.GrowthWishes(max_unverified=MAX_UNVERIFIED - 1)), "bad-tune"),
    ],
)
def test_what_a_coordinator_may_not_say(message: AnyMessage, code: str) -> None:
    ends = with_session()
    ends.say(star(2))
    assert refused_by_both(ends, message) == code


def test_rounds_do_not_go_back() -> None:
    ends = with_session()
    ends.answer(verdict([4], round_no=5))
    ends.answer(verdict([], 4, round_no=5))  # a role or a restart alone
    assert refused_by_both(ends, verdict([4], 4, round_no=4)) == "bad-verdict"


def test_verdicts_move_the_session() -> None:
    ends = with_session()
    ends.say(proposal([4, 5, 6], [0, 1, 1]))
    ends.answer(changed(verdict([4], num_accepted=1), role="standby"))
    for machine in (ends.node, ends.coordinator):
        view = machine.session(1)
        assert (view.num_committed, view.role, view.num_verdicts) == (4, "standby", 1)
        assert (view.tree_no, view.num_live, view.num_vertices) == (1, 2, 3)
        tree = machine.tree(1)
        assert tree is not None
        assert (tree.matched, tree.next_index) == (1, 4)
    ends.answer(verdict([4] * 96, 4))
    assert ends.node.committed(1) == OPEN.max_position


# --- proposals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (proposal([4], [0], tree_no=2), "bad-tree"),
        (proposal([4], [0], first_index=2), "bad-tree"),
        (proposal([4], [1]), "bad-tree"),
        (proposal([4, 5], [0, 2]), "bad-tree"),
        (proposal([4, 4], [0, 0]), "bad-tree"),
        (proposal([VOCAB_SIZE], [0]), "bad-token"),
        (proposal([4], [0], base_position=2), "bad-tree"),
        (proposal([4], [0], base_position=4), "bad-tree"),
        (star(MAX_UNVERIFIED + 1), "too-many-vertices"),
        (changed(star(2), parents=b"\x00\x00"), "bad-column"),
    ],
)
def test_how_a_tree_may_not_begin(message: m.Proposal, code: str) -> None:
    assert refused_by_both(with_session(), message) == code


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (proposal([4], [0], first_index=2), "bad-tree"),
        (proposal([9], [0], first_index=4), "bad-tree"),
        (proposal([9], [3], first_index=3), "bad-tree"),
        (proposal([0], [0], first_index=3), "bad-tree"),
        (proposal([9], [0], first_index=3, base_position=4), "bad-tree"),
        (proposal([9], [0], tree_no=3), "bad-tree"),
        (proposal([9], [0], tree_no=2), "too-many-trees"),
        (proposal(list(range(9, 24)), [0] * 15, first_index=3), "too-many-vertices"),
    ],
)
def test_how_a_tree_may_not_go_on(message: m.Proposal, code: str) -> None:
    ends = with_session()
    ends.say(star(2))
    assert refused_by_both(ends, message) == code


def test_a_tree_goes_on() -> None:
    ends = with_session()
    ends.say(star(2))
    ends.say(proposal([4, 5], [0, 3], first_index=3))
    ends.answer(verdict([4, 5]))
    assert ends.say(proposal([6], [4], first_index=5))
    assert ends.coordinator.session(1).num_live == 1


def test_a_vertex_stands_below_the_last_position() -> None:
    ends = with_session(max_position=6)
    ends.say(chain(3))
    assert refused_by_both(ends, proposal([7], [3], first_index=4)) == "bad-tree"


def test_the_last_index() -> None:
    ends = with_session()
    message = proposal([4], [0], first_index=m.MAX_TREE_INDEX)
    message = changed(message, token_ids=b"\x01\0\0" * 2, parents=bytes(4), log_probs=bytes(2))
    assert refused_by_both(ends, message) == "bad-tree"


def test_a_tree_may_start_at_any_committed_position() -> None:
    ends = with_session()
    ends.answer(verdict([4, 5, 6]))
    ends.say(proposal([5, 6, 8, 9], [0, 1, 2, 1], base_position=4))
    for machine in (ends.node, ends.coordinator):
        assert machine.session(1).num_live == 1  # the vertex below 5, 6
        tree = machine.tree(1)
        assert tree is not None
        assert tree.matched == 2


def test_a_verdict_makes_room() -> None:
    ends = with_session()
    assert ends.node.room(1) == MAX_UNVERIFIED
    ends.say(star(10))
    assert ends.node.room(1) == MAX_UNVERIFIED - 10
    assert ends.node.room(1, 2) == 0  # no verdict yet, so no second tree
    assert ends.node.room(1, 3) == 0
    ends.answer(verdict([49]))
    assert ends.node.room(1) == MAX_UNVERIFIED
    assert ends.node.room(1, 2) == MAX_UNVERIFIED
    assert ends.node.room(1, 1) == MAX_UNVERIFIED
    assert ends.say(star(MAX_UNVERIFIED, tree_no=2, base_position=4))
    assert ends.node.room(1) == 0


def test_law7_bounded_vertices_that_nothing_matches() -> None:
    ends = with_session()
    ends.say(star(1))
    ends.answer(verdict([49, 48]))
    # The tree fell short of the committed tokens: all it brings is discarded, and still counted.
    ends.say(proposal(list(range(1, 17)), [0] * 16, first_index=2))
    assert ends.coordinator.session(1).num_live == 0
    assert ends.node.room(1) == 2 * MAX_UNVERIFIED - 17
    message = proposal([20] * 16, [1] * 16, first_index=18)
    assert refused_by_both(ends, message) == "too-many-vertices"


def test_law7_bounded_vertices_that_await_a_verdict() -> None:
    ends = with_session()
    ends.answer(verdict([]))  # more vertices in all are allowed now, but no more live ones
    ends.say(star(MAX_UNVERIFIED))
    assert ends.node.room(1) == 0
    message = proposal([40], [0], first_index=MAX_UNVERIFIED + 1)
    assert refused_by_both(ends, message) == "too-many-vertices"


def test_room_grows_with_tune() -> None:
    ends = with_session()
    ends.say(star(MAX_UNVERIFIED))
    ends.answer(m.Tune(1, m.GrowthWishes(max_unverified=MAX_UNVERIFIED + 4)))
    assert ends.node.room(1) == 4
    assert ends.say(proposal([40], [0], first_index=17))


def test_an_ended_tree() -> None:
    ends = with_session()
    ends.say(star(3))
    crossing = ends.node.send(proposal([9], [0], first_index=4))
    ends.answer(verdict([1], restart_tree_no=1))
    assert ends.coordinator.receive(crossing) == ()
    assert ends.coordinator.num_stale == 1
    for machine in (ends.node, ends.coordinator):
        assert machine.tree(1) is None
        assert machine.session(1).num_live == 0
        assert machine.session(1).num_vertices == 4
    late = proposal([10], [0], first_index=5)
    assert ends.node.room(1, 1) == 0
    assert ends.node.room(1) == ends.node.room(1, 2) == MAX_UNVERIFIED
    with pytest.raises(IllegalSend, match="stale"):
        ends.node.send(late)


def test_an_older_tree_is_stale() -> None:
    ends = with_session()
    ends.say(star(3))
    ends.answer(verdict([49]))
    ends.say(star(3, tree_no=2, base_position=4))
    assert ends.coordinator.receive(encode_frame([proposal([9], [0], first_index=4)])) == ()
    assert ends.coordinator.num_stale == 1


def test_the_end_of_a_tree_that_its_node_has_left_changes_nothing() -> None:
    ends = with_session()
    ends.say(star(3))
    ends.answer(verdict([49]))
    started = ends.node.send(star(3, tree_no=2, base_position=4))
    ends.answer(verdict([48], 4, restart_tree_no=1))
    assert ends.node.tree(1) is not None
    assert ends.coordinator.receive(started)
    assert ends.coordinator.session(1).tree_no == ends.node.session(1).tree_no == 2


def test_law7_bounded_trees() -> None:
    ends = with_session()
    ends.say(star(1))
    ends.answer(verdict([49], restart_tree_no=1))  # one for the verdict, one for the restart
    ends.say(star(1, tree_no=2, base_position=4))
    ends.say(star(1, tree_no=3, base_position=4))
    assert refused_by_both(ends, star(1, tree_no=4, base_position=4)) == "too-many-trees"


def test_a_full_tree_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specedge_p2p.wire.link_session.TREE_INDEX_TO_RESTART", 10)
    ends = with_session()
    ends.say(star(9))
    assert ends.node.room(1, 2) == 0
    ends.say(proposal([20], [0], first_index=10))
    assert ends.node.room(1, 2) == MAX_UNVERIFIED
    assert ends.say(star(3, tree_no=2))


def test_room_ends_at_the_last_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specedge_p2p.wire.link_session.MAX_TREE_INDEX", 10)
    ends = with_session()
    ends.say(star(7))
    assert ends.node.room(1) == 3


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.data())
def test_room_is_exact(sizes: list[int], data: st.DataObject) -> None:
    """As many vertices as there is room for can be sent, and not one more."""
    ends = with_session()
    next_token, position = 0, 3
    for size in sizes:
        room = ends.node.room(1)
        count = min(size, room)
        if count:
            view = ends.node.tree(1)
            first = 1 if view is None else view.next_index
            tokens = [(next_token + i) % VOCAB_SIZE for i in range(count)]
            ends.say(proposal(tokens, [0] * count, first_index=first))
            next_token += count
        if data.draw(st.booleans()):
            break
    view = ends.node.tree(1)
    assert view is not None
    room, first = ends.node.room(1), view.next_index
    tokens = [(next_token + i) % VOCAB_SIZE for i in range(room + 1)]
    message = proposal(tokens, [0] * (room + 1), first_index=first, base_position=position)
    assert refused_by_both(ends, message) == "too-many-vertices"
