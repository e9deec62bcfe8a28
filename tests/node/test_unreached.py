"""An address given by hand that leads nowhere: the node says once what is wrong with it."""

import logging

import pytest
from trio.testing import MockClock

from node.unreached import WHAT_TO_CHECK, GivenAddresses
from specedge_p2p.identity.keys import Identity
from specedge_p2p.overlay.discovery import find_coordinators, serve_record
from specedge_p2p.overlay.memory import MemoryNetwork, address_of
from tests.support.join_world import ELSEWHERE, HERE, THERE


async def test_the_first_failure_says_what_to_check(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = MemoryNetwork()
    node, broken = network.join(HERE.peer_id), network.join(THERE.peer_id)
    nobody, no_record = address_of(ELSEWHERE.peer_id), address_of(THERE.peer_id)
    remembered = address_of(Identity.generate().peer_id)
    given = GivenAddresses((nobody, no_record))
    async with serve_record(broken, lambda: b"garbage"):
        for _ in range(3):
            await find_coordinators(
                node,
                by_hand=(nobody, no_record, remembered),
                now_s=lambda: 0.0,
                missed=given.missed,
            )
    told = [each for each in caplog.messages if each.endswith(WHAT_TO_CHECK)]
    assert len(told) == 2
    assert f"{nobody}: {ELSEWHERE.peer_id} cannot be reached; {WHAT_TO_CHECK}" in told
    assert any(each.startswith(f"{no_record}: record dropped") for each in told)


def test_an_address_that_has_answered_was_right(caplog: pytest.LogCaptureFixture) -> None:
    given = GivenAddresses(("here", "there"))
    given.answered("here")
    with caplog.at_level(logging.WARNING):
        given.missed("here", "gone")
        given.missed("there", "gone")
    assert caplog.messages == [f"there: gone; {WHAT_TO_CHECK}"]
