"""Thousands of sessions in one life: nothing that a session leaves behind may stay."""

from dataclasses import replace

import pytest
import trio
import trio.testing

from coordinator.ledger.memory import MemoryLedger
from node.receipts import ReceiptBook
from specedge_p2p.lm.pages import PagePool
from specedge_p2p.lm.toy import ToyModel, ToyParams
from specedge_p2p.overlay.memory import MemoryNetwork
from tests.support.holdings import holdings
from tests.support.swarm import Swarm, SwarmSettings, identity, running_swarm

NUM_NODES = 4
AT_ONCE = 16
TARGET = ToyParams(32)
SETTINGS = SwarmSettings(step_time_s=0.02, jitter_s=0.004, seed=5)


async def one_session(swarm: Swarm, number: int) -> None:
    """Every eighth client leaves in the middle; the others get what the target says."""
    prompt, max_tokens = f"session {number}", 1 + number % 6
    if number % 8 == 7:
        with trio.move_on_after(0.01 * (number % 11)):
            await swarm.generate(prompt, max_tokens=200, seed=number)
        return
    result = await swarm.generate(prompt, max_tokens=max_tokens, seed=number)
    assert result.token_ids == swarm.expected(prompt, max_tokens=max_tokens, seed=number)


async def many_sessions(swarm: Swarm, first: int, last: int) -> None:
    for start in range(first, last, AT_ONCE):
        async with trio.open_nursery() as nursery:
            for number in range(start, min(start + AT_ONCE, last)):
                nursery.start_soon(one_session, swarm, number)
            disturb(swarm, start // AT_ONCE)


def disturb(swarm: Swarm, batch: int) -> None:
    if batch % 5 == 1:
        peer = identity(1 + batch % NUM_NODES).peer_id
        swarm.network.drop_links(peer, swarm.identity.peer_id)
    if batch % 20 == 13:
        swarm.engine.crash()


async def held(swarm: Swarm) -> dict[str, int]:
    """What coordinator, engine and nodes hold when all is quiet.

    Ledgers and receipts grow; a pool of pages remembers the most that were ever lent.
    """
    await trio.sleep(90)  # longer than a lease is kept for a node that was lost
    assert swarm.coordinator.load.tokens_per_s == 0  # forgets what the window has left behind
    roots = {
        "coordinator": swarm.coordinator,
        "engine": swarm.core,
        **{f"node{number}": worker for number, worker in swarm.workers.items()},
    }
    return holdings(roots, skip=(MemoryLedger, ReceiptBook, MemoryNetwork, Swarm, PagePool))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_law7_bounded_thousands_of_sessions_leave_nothing_behind() -> None:
    async def run() -> None:
        drafts = [
            ToyModel(replace(TARGET, perturbation=0.4 + 0.3 * i), name="toy-draft")
            for i in range(NUM_NODES)
        ]
        async with running_swarm(SETTINGS, drafts, TARGET) as swarm:
            await many_sessions(swarm, 0, 200)
            early = await held(swarm)
            await many_sessions(swarm, 200, 2000)
            late = await held(swarm)
            assert not len(swarm.coordinator.sessions)
        grown = {
            way: (early.get(way, 0), n) for way, n in late.items() if n > early.get(way, 0) + 8
        }
        assert not grown
        ends = {way.rpartition(".")[2] for way in late}
        assert {"_live", "_leases", "_accepted", "_sequences", "_resumes"} <= ends

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
