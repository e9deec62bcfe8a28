"""A node in virtual time: the real desk and drafter, whose levels take what a device's would."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from coordinator.node_link import NodeLink
from node.desk import Desk
from node.drafter import Drafter, DrafterSettings, LevelDone
from node.hardware import WIDTHS
from node.level_times import LevelSample, LevelShape, LevelTimes
from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import Link
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.messages import (
    MAX_PROPOSAL_VERTICES,
    PROTOCOL_VERSION,
    CoordinatorMessage,
    Hello,
    Message,
    Proposal,
    Resume,
    Verdict,
    Welcome,
)
from tests.simulator.events import Agenda, LinkQuality, Pipe
from tests.simulator.models import MAX_CONTEXT, TraceDraft
from tests.simulator.profiles import NodeCosts

HEARTBEAT_S = 5.0


class EnoughRoom:
    """The limits are kept by the tree itself; a frame has its own."""

    def room(self, session_no: int, tree_no: int | None = None) -> int:
        return MAX_PROPOSAL_VERTICES


class _Address(Link):
    """Says who is at the other end; frames do not go through it."""

    def __init__(self, peer_id: PeerId) -> None:
        self._peer_id = peer_id

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    async def send(self, frame: bytes) -> None:
        raise NotImplementedError

    async def receive(self) -> bytes:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


class WiredLink(NodeLink):
    """The coordinator's end of a link whose messages travel one by one through a pipe."""

    __slots__ = ("deliver",)
    deliver: Callable[[CoordinatorMessage], None]

    def post(self, *messages: CoordinatorMessage) -> None:
        for message in messages:
            self.deliver(message)

    def post_verdict(self, verdict: Verdict) -> None:
        self.deliver(verdict)

    def forget(self, session_no: int) -> None:
        pass


class SimNode:
    """One node. It grows level after level and never waits while there is something to grow.

    What a level finds is computed at its start; verdicts that arrived meanwhile are applied at its
    end, and then what the trees gained is sent.

    Args:
        peer_id: who it is.
        model: its draft model; its alone.
        costs: of its device.
        quality: of its link.
        propose: takes its proposals at the coordinator, with the link that they came by.
        max_sessions: how many it takes.
    """

    def __init__(
        self,
        peer_id: PeerId,
        model: TraceDraft,
        agenda: Agenda,
        costs: NodeCosts,
        quality: LinkQuality,
        random: Random,
        propose: Callable[[WiredLink, Proposal], None],
        max_sessions: int,
        settings: DrafterSettings | None = None,
    ) -> None:
        self.peer_id = peer_id
        self._model, self._agenda, self._costs = model, agenda, costs
        self._quality, self._random, self._propose = quality, random, propose
        self._max_sessions = max_sessions
        self._drafter = Drafter(model, settings, times=known_times(costs))
        self.desk = Desk(self._drafter, max_sessions)
        self._up = Pipe(agenda, quality, random)
        self._down = Pipe(agenda, quality, random)
        self._inbox: list[Message] = []
        self._is_busy = False
        self.link: WiredLink | None = None
        self.resumes: Sequence[Resume] = ()
        self.num_levels = 0
        self.num_level_rows = 0
        self.busy_s = 0.0

    # --- the link --------------------------------------------------------------------------------

    def connect(self, welcome: Welcome) -> WiredLink:
        """A new link, both ends of it; returns the coordinator's, with what is to be resumed."""
        hello = hello_of(self._model.info.name, self._max_sessions, self._costs)
        link = wired_link(self.peer_id, hello, self._agenda.now, self._quality.round_trip_s)
        link.deliver = lambda message: self._down.send(lambda: self._receive(message))
        self.link = link
        self.resumes = self.desk.begin_link(PeerId("coordinator"), welcome)
        return link

    def disconnect(self) -> None:
        """The link breaks: what is under way is lost, what is drafted waits for the next one."""
        self._up.cut()
        self._down.cut()
        self.desk.end_link()
        self._inbox.clear()
        self.link = None

    # --- growth ----------------------------------------------------------------------------------

    def _receive(self, message: Message) -> None:
        self._inbox.append(message)
        if not self._is_busy:
            self._exchange()
            self._next_level()

    def _exchange(self) -> None:
        """Apply what came in, then send what the trees gained."""
        messages, self._inbox = self._inbox, []
        self.desk.apply(messages)
        link = self.link
        if link is None:
            return
        for proposal in self.desk.gains(EnoughRoom()):
            self._up.send(lambda proposal=proposal: self._propose(link, proposal))  # type: ignore[misc]

    def _next_level(self) -> None:
        if self.link is None or not self.desk.num_sessions:
            return
        done = self._drafter.level()
        self.desk.shed(done.shed)
        if not done.num_rows:
            self._exchange()  # in lock-step a tree that cannot grow is proposed as it is
            return
        self._is_busy = True
        time_s = self._level_time_s(done)
        self.num_levels += 1
        self.num_level_rows += done.num_rows
        self.busy_s += time_s
        self._agenda.after(time_s, self._end_level)

    def _end_level(self) -> None:
        self._is_busy = False
        self._exchange()
        self._next_level()

    def _level_time_s(self, done: LevelDone) -> float:
        costs = self._costs
        time_s = costs.level_s + costs.level_row_s * done.num_rows
        if costs.stall_rate and self._random.random() < costs.stall_rate:
            time_s += costs.stall_s
        return time_s


def known_times(costs: NodeCosts) -> LevelTimes:
    """What a node has measured of its device before it joined."""
    return LevelTimes(
        LevelSample(LevelShape(num_rows, 1, 64), costs.level_s + costs.level_row_s * num_rows)
        for num_rows in WIDTHS
    )


class StillNode:
    """A node that is connected and may be given sessions, but never says anything."""

    def __init__(
        self, peer_id: PeerId, agenda: Agenda, plan: "NodeLike", max_sessions: int
    ) -> None:
        self.peer_id = peer_id
        self._agenda, self._plan, self._max_sessions = agenda, plan, max_sessions
        self.link: WiredLink | None = None
        self.resumes: Sequence[Resume] = ()

    def connect(self, welcome: Welcome) -> WiredLink:
        plan = self._plan
        hello = hello_of(plan.draft, self._max_sessions, plan.costs)
        self.link = wired_link(self.peer_id, hello, self._agenda.now, plan.quality.round_trip_s)
        return self.link

    def disconnect(self) -> None:
        self.link = None


class NodeLike(Protocol):
    """What a still node is told of itself."""

    @property
    def costs(self) -> NodeCosts: ...

    @property
    def quality(self) -> LinkQuality: ...

    @property
    def draft(self) -> str: ...


def wired_link(peer_id: PeerId, hello: Hello, now_s: float, round_trip_s: float) -> WiredLink:
    """The coordinator's end; until `deliver` is set, what is said goes nowhere."""
    link = WiredLink(
        link=_Address(peer_id),
        hello=hello,
        machine=LinkMachine("coordinator"),
        connected_s=now_s,
        max_sessions=hello.max_sessions,
        round_trip_s=round_trip_s,
    )
    link.deliver = lambda message: None
    return link


def hello_of(draft: str, max_sessions: int, costs: NodeCosts) -> Hello:
    return Hello(
        min_version=PROTOCOL_VERSION,
        max_version=PROTOCOL_VERSION,
        draft_model=draft,
        model_fingerprint=draft.encode(),
        tokenizer_fingerprint=b"recorded",
        max_sessions=max_sessions,
        level_time_s=costs.level_s,
        level_session_time_s=8 * costs.level_row_s,
    )


def welcome(vocab_size: int) -> Welcome:
    return Welcome(
        version=PROTOCOL_VERSION,
        target_model="recorded",
        vocab_size=vocab_size,
        max_context=MAX_CONTEXT,
        heartbeat_s=HEARTBEAT_S,
    )
