"""Which sessions a lock-step round takes, and how long it waits."""

import math
from collections.abc import Iterable

import pytest

from coordinator.engine.messages import SourceFactor, StepEntry, VerificationBatch
from coordinator.lockstep import LockstepGate, make_gate
from coordinator.sessions import Session
from coordinator.settings import Lockstep
from specedge_p2p.errors import ClearError
from tests.support.results import session

LOCKSTEP = Lockstep(levels=4, vertices=16, wait_s=2.0)


def batch(step_no: int, sessions: Iterable[Session]) -> VerificationBatch:
    return VerificationBatch(step_no, [StepEntry(s.number, 8) for s in sessions], 0.1, [], 0)


def decoding(number: int) -> Session:
    """A session whose first token is there."""
    made = session(number)
    made.token_ids.append(5)
    return made


class Nodes:
    """One source per drafted session, numbered like it."""

    def __init__(self, *drafted: Session) -> None:
        self.by_session = {s.number: [SourceFactor(s.number, 1.0)] for s in drafted}

    def __call__(self, wanted: Session) -> list[SourceFactor]:
        return self.by_session.get(wanted.number, [])


def propose(gate: LockstepGate, wanted: Session, behind: int = 0) -> None:
    gate.proposed(wanted.number, len(wanted.token_ids) - behind)


def test_without_lockstep_nobody_waits() -> None:
    gate, live = make_gate(None), [session(1), decoding(2)]
    assert gate.due(0.0, live, Nodes(*live)) == live
    assert gate.patience_s(0.0) == math.inf
    assert not gate.proposed(1, 5)


def test_a_session_is_due_when_its_proposal_is_here_and_once_for_each() -> None:
    gate, one = LockstepGate(LOCKSTEP), decoding(1)
    nodes = Nodes(one)
    assert gate.due(0.0, [one], nodes) == ()
    assert gate.patience_s(0.5) == 1.5
    propose(gate, one, behind=1)
    assert gate.due(0.0, [one], nodes) == ()
    propose(gate, one)
    assert gate.due(0.0, [one], nodes) == [one]
    gate.planned(batch(1, [one]))
    assert gate.due(9.0, [one], nodes) == ()
    assert gate.patience_s(9.0) == math.inf  # its step is not done
    gate.done(1)
    assert gate.due(9.0, [one], nodes) == [one]  # a full step left it out: nothing was committed
    one.token_ids.append(6)
    gate.committed(9.0, one)
    assert gate.due(9.0, [one], nodes) == ()
    assert gate.patience_s(9.0) == 2.0


def test_prompts_and_sessions_without_a_node_are_always_due() -> None:
    gate, fresh, alone = LockstepGate(LOCKSTEP), session(1), decoding(2)
    for step_no in range(3):
        assert gate.due(0.0, [fresh, alone], Nodes(fresh)) == [fresh, alone]
        gate.planned(batch(step_no, [fresh, alone]))


def test_a_node_that_does_not_propose_in_time_is_not_waited_for_until_it_does() -> None:
    gate, one = LockstepGate(LOCKSTEP), decoding(1)
    nodes = Nodes(one)
    assert gate.due(0.0, [one], nodes) == ()
    assert gate.due(2.0, [one], nodes) == [one]
    one.token_ids.append(6)
    gate.committed(2.1, one)
    assert gate.due(2.1, [one], nodes) == [one]
    propose(gate, one, behind=1)  # late, but it is there again
    assert gate.due(2.2, [one], nodes) == ()


def test_the_first_of_two_nodes_is_enough() -> None:
    gate, one = LockstepGate(LOCKSTEP), decoding(1)
    nodes = Nodes(one)
    nodes.by_session[1] = [SourceFactor(7, 1.0), SourceFactor(8, 1.0)]
    assert gate.due(0.0, [one], nodes) == ()
    gate.proposed(8, len(one.token_ids))
    assert gate.due(0.0, [one], nodes) == [one]


def test_a_step_waits_for_a_batch_while_more_can_become_ready() -> None:
    gate = LockstepGate(Lockstep(4, 16, min_batch=3))
    live = [decoding(number) for number in (1, 2, 3, 4)]
    nodes = Nodes(*live)
    for number, session_ in enumerate(live[:3]):
        assert gate.due(0.0, live, nodes) == (), number
        propose(gate, session_)
    assert gate.due(0.0, live, nodes) == live[:3]
    gate.planned(batch(1, live[:3]))
    propose(gate, live[3])
    assert gate.due(0.0, live, nodes) == ()
    assert gate.due(0.0, live[3:], nodes) == live[3:]  # the others ended


def test_an_engine_that_died_needs_every_proposal_anew() -> None:
    gate, one = LockstepGate(LOCKSTEP), decoding(1)
    nodes = Nodes(one)
    propose(gate, one)
    gate.planned(batch(1, gate.due(0.0, [one], nodes)))
    gate.reset()
    assert gate.due(5.0, [one], nodes) == ()
    assert gate.patience_s(5.0) == 2.0
    propose(gate, one)
    assert gate.due(5.0, [one], nodes) == [one]


def test_what_ended_is_forgotten() -> None:
    gate = LockstepGate(LOCKSTEP)
    for number in range(1, 100):
        one = decoding(number)
        propose(gate, one)
        gate.committed(0.0, one)
        gate.due(0.0, [one], Nodes(one))
    assert len(gate._proposed) == len(gate._since_s) == 1


def test_the_option_is_read_or_refused() -> None:
    assert Lockstep.parse("6x32") == Lockstep(6, 32)
    assert Lockstep.parse("6x32:nopro") == Lockstep(6, 32, is_proactive=False)
    assert Lockstep.parse("6x32:4") == Lockstep(6, 32, min_batch=4)
    assert Lockstep.parse("1x512:nopro:16") == Lockstep(1, 512, False, 16)
    for text in ("", "6", "0x4", "4x0", "4x513", "1025x4", "4x4:0", "4x4:pro", "-1x4", "4x4:2:3"):
        with pytest.raises(ClearError, match="lock-step"):
            Lockstep.parse(text)


def test_nodes_are_told() -> None:
    wishes = Lockstep(5, 20, is_proactive=False).wishes
    assert (wishes.lockstep_levels, wishes.lockstep_vertices) == (5, 20)
    assert not wishes.is_proactive
