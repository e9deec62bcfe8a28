"""The one place where tokens are committed."""

import pytest
import trio
from trio.testing import MockClock

from coordinator.engine.messages import EntryResult, TokenSource
from coordinator.gateway.ports import FinishEvent, GuessedToken, Refused, TextEvent
from coordinator.sessions import Sessions
from specedge_p2p.lm.toy_text import ToyText
from tests.support.results import ANNA, ANNAS, BEN, BENS, result, session
from tests.support.swarm import VOCAB


async def test_commit_tells_tokens_text_and_who_guessed_them(autojump_clock: MockClock) -> None:
    one = session()
    one.commit(result(one, [4]))
    committed = one.commit(result(one, [5, 6, 7], [ANNAS, BENS, 0]))
    assert committed.from_position == one.prompt_length + 1
    assert committed.accepted_by_source == {ANNAS: 1, BENS: 1}
    (event,) = await one.events()
    assert isinstance(event, TextEvent)
    guessers = ("", ANNA, BEN, "")
    assert event.tokens == tuple(map(GuessedToken, (4, 5, 6, 7), guessers))
    assert event.text == ToyText(VOCAB).decode([4, 5, 6, 7])
    stats = one.stats()
    assert (stats.num_tokens, stats.num_rounds, stats.num_drafted_tokens) == (4, 1, 3)
    assert stats.num_accepted_by_node == {ANNA: 1, BEN: 1}


async def test_the_ngram_guess_is_named_only_where_no_node_had_it() -> None:
    one = session()
    both = EntryResult(
        1,
        one.prompt_length,
        [4, 5],
        [TokenSource(ngram=True), TokenSource(ANNAS, ngram=True)],
        num_rows=2,
        num_source_rows=1,
    )
    one.commit(both)
    (event,) = await one.events()
    assert isinstance(event, TextEvent)
    assert [token.guessed_by for token in event.tokens] == ["ngram", ANNA]


def test_every_token_is_counted_for_one_guesser_nodes_first() -> None:
    one = session()
    sources = [
        TokenSource(ANNAS, BENS, ngram=True, own=True),
        TokenSource(BENS, own=True),
        TokenSource(ngram=True, own=True),
        TokenSource(own=True),
        TokenSource(),
    ]
    committed = one.commit(
        EntryResult(1, one.prompt_length, [4, 5, 6, 7, 8], sources, num_rows=4, num_source_rows=2)
    )
    assert committed.accepted_by_source == {ANNAS: 1, BENS: 1}
    assert (committed.num_second, committed.num_ngram, committed.num_own) == (1, 1, 1)


@pytest.mark.parametrize("shift", [-3, -2, -1, 1])
def test_law2_one_owner_a_result_that_does_not_follow_is_a_bug(shift: int) -> None:
    one = session()
    one.commit(result(one, [5, 6]))
    wrong = EntryResult(1, len(one.token_ids) + shift, [4], [TokenSource()], 0, 0)
    with pytest.raises(ValueError, match="decided from position"):
        one.commit(wrong)
    assert one.token_ids[one.prompt_length :] == [5, 6]


def test_rounds_are_counted_from_the_first_token_on() -> None:
    one = session()
    one.commit(result(one, [5]))
    one.commit(result(one, [6, 7, 8], [ANNAS, ANNAS, 0]))
    one.commit(result(one, [9], finish="length"))
    stats = one.stats()
    assert (stats.num_tokens, stats.num_rounds) == (5, 2)
    assert (stats.num_drafted_rounds, stats.num_drafted_tokens) == (1, 3)
    assert stats.num_accepted_by_node == {ANNA: 2}


@pytest.mark.parametrize("num_apart", [1, 2, 3])
async def test_a_stop_string_cuts_what_comes_after_it(num_apart: int) -> None:
    """Whether it comes in one result or over several: the rest is not committed, nor credited."""
    tokens = [4, 5, 6, 7, 8, 9]
    text = ToyText(VOCAB)
    stop = text.decode([6, 7])
    one = session(stop=(stop,))
    for at in range(0, len(tokens), num_apart):
        if one.is_live:
            part = tokens[at : at + num_apart]
            one.commit(result(one, part, [ANNAS] * len(part)))
    assert one.finish == "stop"
    assert not one.is_live
    assert one.token_ids[one.prompt_length :] == [4, 5, 6, 7]
    assert one.num_accepted == 4
    assert one.accepted_by_node == {ANNA: 4}
    *_, finish = events = list(await one.events())
    assert isinstance(finish, FinishEvent)
    shown = "".join(event.text for event in events if isinstance(event, TextEvent))
    assert shown == text.decode([4, 5])


async def test_the_beginning_of_a_stop_string_is_held_back_until_the_end() -> None:
    one = session(stop=(ToyText(VOCAB).decode([6, 7]),))
    one.commit(result(one, [5, 6]))
    (event,) = await one.events()
    assert isinstance(event, TextEvent)
    assert event.text == ToyText(VOCAB).decode([5])
    one.commit(result(one, [8], finish="length"))
    last, finish = await one.events()
    assert isinstance(last, TextEvent)
    assert isinstance(finish, FinishEvent)
    assert last.text == ToyText(VOCAB).decode([6, 8])
    assert finish.reason == "length"


async def test_a_stop_string_that_is_found_at_the_end_is_why_it_ended() -> None:
    text = ToyText(VOCAB).decode
    one = session(stop=(text([5, 6, 7, 8]), text([6, 7])))
    one.commit(result(one, [4, 5, 6, 7], finish="length"))
    shown, finish = await one.events()
    assert isinstance(shown, TextEvent)
    assert isinstance(finish, FinishEvent)
    assert (shown.text, finish.reason) == (text([4, 5]), "stop")


async def test_failure_is_raised_to_the_reader_and_the_first_one_stays() -> None:
    one = session()
    one.fail(Refused(503, "first", "lost"))
    one.fail(Refused(500, "second", "lost again"))
    with pytest.raises(Refused) as refused:
        await one.events()
    assert refused.value.code == "first"


async def test_a_finished_session_does_not_fail() -> None:
    one = session()
    one.commit(result(one, [4], finish="stop"))
    one.fail(Refused(503, "late", "too late"))
    assert [type(event) for event in await one.events()] == [TextEvent, FinishEvent]


async def test_a_reader_waits_for_news(autojump_clock: MockClock) -> None:
    one = session()
    async with trio.open_nursery() as nursery:

        async def later() -> None:
            await trio.sleep(3)
            one.commit(result(one, [4]))

        nursery.start_soon(later)
        await one.events()
        assert trio.current_time() == pytest.approx(3)


def test_law7_bounded_sessions_and_numbers_never_used_again() -> None:
    sessions = Sessions(2)
    numbers = [sessions.next_number() for _ in range(3)]
    assert len(set(numbers)) == 3
    one, two = session(numbers[0]), session(numbers[1])
    sessions.add(one)
    sessions.refuse_when_full()
    sessions.add(two)
    with pytest.raises(Refused) as refused:
        sessions.refuse_when_full()
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert sessions.remove(one)
    assert not sessions.remove(one)
    sessions.refuse_when_full()
    assert sessions.get(one.number) is None
    assert sessions.next_number() not in numbers


async def test_waiting_until_all_have_ended(autojump_clock: MockClock) -> None:
    sessions, one, two = Sessions(5), session(1), session(2)
    sessions.add(one)
    sessions.add(two)
    async with trio.open_nursery() as nursery:

        async def end() -> None:
            for each in (one, two):
                await trio.sleep(1)
                sessions.remove(each)

        nursery.start_soon(end)
        await sessions.until_empty()
        assert trio.current_time() == pytest.approx(2)
    await sessions.until_empty()
