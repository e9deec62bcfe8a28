"""Where tokens are committed: ends, credit, text, and what never existed."""

import pytest
import trio
import trio.testing

from coordinator.engine.messages import EntryResult, TokenSource
from coordinator.gateway.ports import FinishEvent, Refused, TextEvent
from coordinator.sessions import Session, Sessions
from specedge_p2p.names import PeerId
from tests.support.sessions import make_session


def result(
    position: int, *token_ids: int, source: int = 0, ngram: bool = False, finish: str = ""
) -> EntryResult:
    sources = [TokenSource(source, 0, ngram) for _ in token_ids]
    rows = len(token_ids) if source else 0
    return EntryResult(
        1, position, list(token_ids), sources, num_rows=rows, num_source_rows=rows, finish=finish
    )


async def events(session: Session) -> tuple[str, list[int], str]:
    """Text, tokens and the reason of the end of what is new."""
    text, tokens, reason = "", [], ""
    for event in await session.events():
        match event:
            case TextEvent(more, guessed):
                text += more
                tokens += [token.token_id for token in guessed]
            case FinishEvent(reason, _):
                pass
    return text, tokens, reason


async def test_law2_one_owner_a_result_that_does_not_follow_is_not_committed() -> None:
    session = make_session()
    session.commit(result(2, 5, 6))
    for position in (2, 3, 5):
        with pytest.raises(ValueError, match="decided from position"):
            session.commit(result(position, 7))
    assert session.token_ids == [2, 3, 5, 6]


async def test_what_lies_beyond_a_stop_string_never_existed() -> None:
    plain = make_session()
    plain.commit(result(2, 5, 6, 7, 8, 9))
    text, _, _ = await events(plain)
    session = make_session(stop=(text[1:3],))
    session.nodes_by_source[4] = PeerId("a")
    committed = session.commit(result(2, 5, 6, 7, 8, 9, source=4, finish="length"))
    assert committed.token_ids == session.token_ids[2:] == [5, 6, 7]
    assert committed.accepted_by_source == {4: 3}
    assert session.num_accepted == 3
    assert await events(session) == (text[:1], [5, 6, 7], "stop")
    assert not session.is_live


async def test_rounds_are_counted_from_the_first_token_on() -> None:
    session = make_session()
    session.nodes_by_source[4] = PeerId("a")
    session.commit(result(2, 5))
    session.commit(result(3, 6, 7, 8, source=4))
    session.commit(result(6, 9, finish="length"))
    stats = session.stats()
    assert (stats.num_tokens, stats.num_rounds) == (5, 2)
    assert (stats.num_drafted_rounds, stats.num_drafted_tokens) == (1, 3)
    assert stats.num_accepted_by_node == {"a": 3}


async def test_a_failure_is_raised_once_and_not_after_the_end() -> None:
    refused = Refused(503, "gone", "gone")
    session = make_session()
    session.fail(refused)
    with pytest.raises(Refused):
        await session.events()
    ended = make_session()
    ended.commit(result(2, 5, finish="stop"))
    ended.fail(refused)
    assert (await events(ended))[2] == "stop"


async def test_readers_wake_for_news(autojump_clock: trio.testing.MockClock) -> None:
    session = make_session()

    async def work() -> None:
        await trio.sleep(1)
        session.commit(result(2, 5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        with trio.fail_after(2):
            assert (await events(session))[1] == [5]


async def test_law7_bounded_sessions_and_numbers_are_never_used_twice() -> None:
    sessions = Sessions(2)
    first, second = (make_session(sessions.next_number()) for _ in range(2))
    sessions.add(first)
    sessions.refuse_when_full()
    sessions.add(second)
    with pytest.raises(Refused):
        sessions.refuse_when_full()
    assert sessions.remove(first)
    assert not sessions.remove(first)
    sessions.refuse_when_full()
    assert sessions.next_number() == 3
