"""Two honest ends with everything under way crossing: nobody ever breaks a rule.

Honest means that each end asks its own machine and nothing else. The node's trees grow by the real
`GrowingTree`, from gains that may be taken before and sent after a verdict.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from specedge_p2p.tree.growth import GrowingTree, GrowthSettings
from specedge_p2p.wire import messages as m
from specedge_p2p.wire.build import merge_verdicts, open_messages
from specedge_p2p.wire.codec import AnyMessage
from specedge_p2p.wire.columns import pack_tokens, proposal_from_gain, unpack_tokens
from specedge_p2p.wire.link_machine import LinkMachine
from tests.support.links import HELLO, OPEN, WELCOME, changed

NUM_TOKENS = 4
MAX_POSITION = 40
CHOICE = st.integers(0, 1_000_000)


@dataclass
class NodeSession:
    """What the node keeps of a session beside the machine."""

    growing: GrowingTree
    held: m.Proposal | None = None  # made, not sent yet


@dataclass
class CoordinatorSession:
    """What the coordinator keeps of a session beside the machine."""

    committed: list[int]
    lease_id: bytes
    chunks: deque[AnyMessage]
    round_no: int = 0
    unsent: m.Verdict | None = None
    max_unverified: int = 6


@dataclass
class Wire:
    """Frames under way in one direction, in order."""

    frames: deque[bytes] = field(default_factory=deque)


class RacingEnds(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.node = LinkMachine("node")
        self.coordinator = LinkMachine("coordinator")
        self.up, self.down = Wire(), Wire()
        self.node_sessions: dict[int, NodeSession] = {}
        self.prompts: dict[int, tuple[m.Open, list[int]]] = {}
        self.sessions: dict[int, CoordinatorSession] = {}
        self.leases: dict[bytes, list[int]] = {}
        self.resumes: deque[m.Resume] = deque()
        self.resumed: dict[bytes, int] = {}
        self.last_no = 0
        self.num_leases = 0
        self.draining = False

    # --- helpers ---

    def to_node(self, *messages: AnyMessage) -> None:
        self.down.frames.append(self.coordinator.send(*messages))

    def to_coordinator(self, *messages: AnyMessage) -> None:
        self.up.frames.append(self.node.send(*messages))

    def pick(self, numbers: list[int], choice: int) -> int:
        return sorted(numbers)[choice % len(numbers)]

    @initialize()
    def greet(self) -> None:
        self.to_coordinator(HELLO)
        self.coordinator.receive(self.up.frames.popleft())
        self.to_node(WELCOME)
        self.node.receive(self.down.frames.popleft())

    # --- the coordinator acts ---

    @precondition(lambda self: len(self.sessions) < 3 and not self.draining)
    @rule(prompt=st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=4))
    def open(self, prompt: list[int]) -> None:
        self.last_no += 1
        self.num_leases += 1
        lease = self.num_leases.to_bytes(16, "big")
        opened = changed(
            OPEN,
            session_no=self.last_no,
            lease_id=lease,
            max_position=MAX_POSITION,
            wishes=m.GrowthWishes(max_unverified=6),
        )
        whole, *chunks = open_messages(opened, prompt)
        # Cut further than the builder does, so that other things stand between the chunks.
        small = deque(
            m.Prompt(self.last_no, at, pack_tokens(prompt[at : at + 2]))
            for at in range(0, len(prompt), 2)
        )
        assert len(chunks) == 1
        self.to_node(whole)
        self.sessions[self.last_no] = CoordinatorSession(list(prompt), lease, small)

    @precondition(lambda self: any(s.chunks for s in self.sessions.values()))
    @rule(choice=CHOICE)
    def send_chunk(self, choice: int) -> None:
        number = self.pick([n for n, s in self.sessions.items() if s.chunks], choice)
        self.to_node(self.sessions[number].chunks.popleft())

    @precondition(lambda self: self.sessions)
    @rule(
        choice=CHOICE,
        token_ids=st.lists(st.integers(0, NUM_TOKENS - 1), max_size=4),
        restart=st.booleans(),
        follow=st.booleans(),
    )
    def commit(self, choice: int, token_ids: list[int], restart: bool, follow: bool) -> None:
        number = self.pick(list(self.sessions), choice)
        session = self.sessions[number]
        tree = self.coordinator.tree(number)
        if follow and tree is not None and tree.is_full and len(tree.tree):
            live = list(tree.tree)
            token_ids = [tree.tree.token_id(i) for i in tree.tree.path(live[choice % len(live)])]
        token_ids = token_ids[: MAX_POSITION - len(session.committed)]
        session.round_no += 1
        fresh = m.Verdict(
            number,
            session.round_no,
            len(session.committed),
            pack_tokens(token_ids),
            num_accepted=min(1, len(token_ids)),
            restart_tree_no=self.coordinator.session(number).tree_no if restart else 0,
        )
        session.committed += token_ids
        session.unsent = merge_verdicts(session.unsent, fresh) if session.unsent else fresh
        assert session.unsent is not None

    @precondition(lambda self: any(s.unsent and not s.chunks for s in self.sessions.values()))
    @rule(choice=CHOICE)
    def send_verdict(self, choice: int) -> None:
        ready = [n for n, s in self.sessions.items() if s.unsent and not s.chunks]
        session = self.sessions[self.pick(ready, choice)]
        assert session.unsent is not None
        self.to_node(session.unsent)
        session.unsent = None

    @precondition(lambda self: self.sessions)
    @rule(choice=CHOICE, more=st.integers(0, 3))
    def tune(self, choice: int, more: int) -> None:
        number = self.pick(list(self.sessions), choice)
        session = self.sessions[number]
        session.max_unverified += more
        self.to_node(m.Tune(number, m.GrowthWishes(max_unverified=session.max_unverified)))

    @precondition(lambda self: self.sessions)
    @rule(choice=CHOICE, resumable=st.booleans())
    def close(self, choice: int, resumable: bool) -> None:
        number = self.pick(list(self.sessions), choice)
        self.end_session(number, resumable)
        self.to_node(m.Close(number))

    def end_session(self, number: int, resumable: bool) -> None:
        session = self.sessions.pop(number)
        if resumable:
            self.leases[session.lease_id] = session.committed

    @precondition(lambda self: self.resumes and len(self.sessions) < 5)
    @rule(refuse=st.booleans())
    def answer_resume(self, refuse: bool) -> None:
        resume = self.resumes.popleft()
        committed = self.leases.pop(resume.lease_id, None)
        if refuse or self.draining or committed is None or resume.position > len(committed):
            self.to_node(m.Refuse("no-lease", "", resume.lease_id))
            return
        self.last_no += 1
        opened = changed(
            OPEN,
            session_no=self.last_no,
            lease_id=resume.lease_id,
            num_tokens=len(committed),
            max_position=MAX_POSITION,
            wishes=m.GrowthWishes(max_unverified=6),
            resumed=True,
        )
        self.to_node(opened)
        session = CoordinatorSession(committed, resume.lease_id, deque())
        self.sessions[self.last_no] = session
        session.unsent = m.Verdict(
            self.last_no, 0, resume.position, pack_tokens(committed[resume.position :]), 0
        )

    # --- the node acts ---

    @precondition(lambda self: self.node_sessions)
    @rule(choice=CHOICE, limit=st.integers(1, 9), seed=st.integers(0, 5))
    def draft(self, choice: int, limit: int, seed: int) -> None:
        """Grow one level, and make a proposal of the gain unless one waits to be sent."""
        number = self.pick(list(self.node_sessions), choice)
        session = self.node_sessions[number]
        frontier = session.growing.frontier()
        if frontier:
            tokens = (np.arange(2)[None, :] + seed + np.arange(len(frontier))[:, None]) % NUM_TOKENS
            log_probs = np.full(tokens.shape, -0.1, dtype=np.float32)
            session.growing.expand(frontier, tokens.astype(np.int32), log_probs)
        if session.held is None:
            room = self.node.room(number, session.growing.tree_no)
            gain = session.growing.take_gain(min(limit, room)) if room else None
            if gain is not None:
                session.held = proposal_from_gain(number, gain)

    @precondition(lambda self: any(s.held for s in self.node_sessions.values()))
    @rule(choice=CHOICE)
    def propose(self, choice: int) -> None:
        number = self.pick([n for n, s in self.node_sessions.items() if s.held], choice)
        self.flush(self.node_sessions[number])

    def flush(self, session: NodeSession) -> None:
        held, session.held = session.held, None
        if held is None:
            return
        if self.node.is_stale(held):
            event("a proposal became stale before it was sent")
            return
        self.to_coordinator(held)

    @precondition(lambda self: self.node.sessions)
    @rule(choice=CHOICE)
    def release(self, choice: int) -> None:
        number = self.pick(list(self.node.sessions), choice)
        self.node_sessions.pop(number, None)
        self.prompts.pop(number, None)
        self.to_coordinator(m.Release(number))

    @precondition(lambda self: self.leases)
    @rule(position=st.integers(1, 6))
    def resume(self, position: int) -> None:
        lease = sorted(self.leases)[0]
        if lease not in self.resumed:
            self.resumed[lease] = position
            self.to_coordinator(m.Resume(lease, position))

    # --- frames arrive ---

    @precondition(lambda self: self.down.frames)
    @rule()
    def node_receives(self) -> None:
        before = self.node.num_stale
        for message in self.node.receive(self.down.frames.popleft()):
            self.on_node(message)
        if self.node.num_stale > before:
            event("the node left out a message")

    def on_node(self, message: AnyMessage) -> None:
        match message:
            case m.Open(resumed=True):
                position = self.resumed.pop(message.lease_id)
                assert self.node.committed(message.session_no) == position
                self.start_drafting(message, 0, position)
            case m.Open():
                self.prompts[message.session_no] = (message, [])
            case m.Refuse():
                del self.resumed[message.lease_id]
            case m.Prompt():
                opened, prompt = self.prompts[message.session_no]
                prompt += unpack_tokens(message.token_ids).tolist()
                if len(prompt) == opened.num_tokens:
                    del self.prompts[message.session_no]
                    self.start_drafting(opened, prompt[-1], len(prompt))
            case m.Verdict():
                session = self.node_sessions[message.session_no]
                # A proposal made before is sent before, or not at all: indices have no gaps.
                if session.held is not None and not self.node.is_stale(session.held):
                    self.flush(session)
                session.held = None
                restart = message.restart_tree_no == session.growing.tree_no
                session.growing.commit(unpack_tokens(message.token_ids).tolist())
                if restart and message.restart_tree_no == session.growing.tree_no:
                    session.growing.restart()
            case m.Tune():
                if message.session_no in self.node_sessions:
                    wishes = message.wishes
                    growing = self.node_sessions[message.session_no].growing
                    growing.tune(wishes.min_prob, wishes.look_ahead, wishes.max_unverified)
            case m.Close():
                self.node_sessions.pop(message.session_no, None)
                self.prompts.pop(message.session_no, None)
            case _:
                pass

    def start_drafting(self, opened: m.Open, root_token: int, num_committed: int) -> None:
        settings = GrowthSettings(
            beam_width=3, branch_width=2, max_unverified=opened.wishes.max_unverified
        )
        growing = GrowingTree(num_committed, root_token, settings, opened.max_position)
        self.node_sessions[opened.session_no] = NodeSession(growing)

    @precondition(lambda self: self.up.frames)
    @rule()
    def coordinator_receives(self) -> None:
        before = self.coordinator.num_stale
        for message in self.coordinator.receive(self.up.frames.popleft()):
            match message:
                case m.Release():
                    self.end_session(message.session_no, resumable=True)
                case m.Resume():
                    self.resumes.append(message)
                case _:
                    assert isinstance(message, m.Proposal)
        if self.coordinator.num_stale > before:
            event("the coordinator left out a message")

    # --- what holds always, and when all is quiet ---

    @invariant()
    def the_coordinator_is_ahead(self) -> None:
        for number in set(self.node.sessions) & set(self.coordinator.sessions):
            behind, ahead = self.node.session(number), self.coordinator.session(number)
            assert behind.num_committed <= ahead.num_committed
            assert behind.max_unverified <= ahead.max_unverified
            assert behind.num_vertices >= ahead.num_vertices

    def teardown(self) -> None:
        while self.up.frames or self.down.frames:
            if self.down.frames:
                self.node_receives()
            if self.up.frames:
                self.coordinator_receives()
        assert self.node.sessions == self.coordinator.sessions == tuple(self.sessions)
        for number in self.node.sessions:
            assert self.node.session(number) == self.coordinator.session(number)
            ours, theirs = self.node.tree(number), self.coordinator.tree(number)
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert list(ours.tree) == list(theirs.tree)
                assert ours.matched == theirs.matched
        super().teardown()


TestRacingEnds = RacingEnds.TestCase
TestRacingEnds.settings = settings(stateful_step_count=60)
