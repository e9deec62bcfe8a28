"""Leases on a clock that the test moves, and nodes that say what it wants."""

from dataclasses import dataclass, field

from coordinator.engine.messages import EntryResult, SourceSeen, StepDone, TokenSource
from coordinator.leases import Leases
from coordinator.node_link import NodeLink
from coordinator.sessions import Committed, Session, Sessions
from specedge_p2p.names import PeerId
from specedge_p2p.wire import messages as m
from tests.support.links import changed, proposal
from tests.support.node_links import CONTEXT, Wire, open_link, write_all
from tests.support.sessions import make_session

LEASE_S = 60.0


@dataclass
class World:
    """Leases on a clock that the test moves."""

    now_s: float = 100.0
    sessions: Sessions = field(default_factory=lambda: Sessions(8))

    def __post_init__(self) -> None:
        allowed = frozenset({PeerId("b")})
        self.leases = Leases(self.sessions, allowed, lambda: self.now_s, LEASE_S)
        self.leases.max_context = CONTEXT

    async def node(
        self, name: str = "a", max_sessions: int = 8, fingerprint: bytes = bytes(16)
    ) -> tuple[NodeLink, Wire]:
        node, wire = await open_link(max_sessions, name)
        node.hello = changed(node.hello, model_fingerprint=fingerprint)
        node.round_trip_s = 0.015
        node.connected_s = self.now_s
        self.leases.join(node)
        return node, wire

    def session(self, number: int = 1, **options: str) -> Session:
        session = make_session(number, **options)  # type: ignore[arg-type]
        self.sessions.add(session)
        self.leases.rematch()
        return session

    def commit(self, session: Session, *token_ids: int) -> None:
        committed = Committed(len(session.token_ids), list(token_ids))
        session.token_ids += token_ids
        self.leases.publish(session, committed)

    def later(self, by_s: float) -> None:
        """Some time passes, and somebody gives the reason to look at all sessions."""
        self.now_s += by_s
        self.leases.rematch()

    def judge(self, session: Session, num_steps: int, *, accepted: bool) -> None:
        """Steps in which the first node's trees were right, or were not."""
        for step_no in range(num_steps):
            sources = [lease.source for lease in self.leases.of_session(session)]
            result = EntryResult(
                session=session.number,
                from_position=len(session.token_ids),
                token_ids=[4],
                sources=[TokenSource(sources[-1] if accepted else 0)],
                num_rows=1,
                num_source_rows=1,
                seen=[SourceSeen(source, 0.9, accepted) for source in sources],
            )
            self.leases.learn(StepDone(step_no, 0.0, 0.04, 0.0, 1, [result]))


async def propose(world: World, node: NodeLink, wire: Wire) -> None:
    """The first tree of a node in the session that it has just been given."""
    head = await opened(node, wire)
    first = proposal([5], [0], session_no=head.session_no, base_position=head.num_tokens)
    (heard,) = node.machine.receive(wire.machine.send(first))
    assert isinstance(heard, m.Proposal)
    assert world.leases.accept(node, heard) is not None


async def opened(node: NodeLink, wire: Wire) -> m.Open:
    """The Open that has just been sent to a node."""
    wire.frames.clear()
    await write_all(node)
    (found,) = [message for message in wire.messages if isinstance(message, m.Open)]
    return found


async def ask(node: NodeLink, wire: Wire, leases: Leases, resume: m.Resume) -> str:
    """What a Resume is answered with: the code of the refusal, or "open"."""
    (heard,) = node.machine.receive(wire.machine.send(resume))
    assert isinstance(heard, m.Resume)
    leases.resume(node, heard)
    wire.frames.clear()
    await write_all(node)
    answers = [x for x in wire.messages if isinstance(x, m.Refuse | m.Open)]
    assert len(answers) == 1
    assert answers[0].lease_id == resume.lease_id
    return answers[0].code if isinstance(answers[0], m.Refuse) else "open"
