"""Two honest ends with everything under way crossing: nobody ever breaks a rule.

Honest means that each end asks its own machine and nothing else. The node's trees grow by the real
`GrowingTree`, from gains that may be taken before and sent after a verdict.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.tree.growth import GrowingTree, GrowthSettings
from specedge_p2p.wire import messages as m
from specedge_p2p.wire.build import merge_verdicts, open_messages
from specedge_p2p.wire.codec import AnyMessage
from specedge_p2p.wire.columns import pack_tokens, proposal_from_gain, unpack_tokens
from specedge_p2p.wire.link_machine import LinkMachine
from tests.support.links import HELLO, OPEN, WELCOME, changed
from tests.support.trees import tokens_to

NUM_TOKENS = 4
MAX_POSITION = 150
NUM_STEPS = 2000


@dataclass
class NodeSession:
    """What the node keeps of a session beside the machine."""

    growing: GrowingTree
    lease_id: bytes
    held: m.Proposal | None = None  # made, not sent yet


@dataclass
class CoordinatorSession:
    """What the coordinator keeps of a session beside the machine."""

    committed: list[int]
    lease_id: bytes
    chunks: deque[m.Prompt]
    round_no: int = 0
    unsent: m.Verdict | None = None
    max_unverified: int = 6


def is_void(machine: LinkMachine, proposal: m.Proposal) -> bool:
    """Its session or its tree has ended since it was made."""
    if not machine.is_open(proposal.session_no):
        return True
    tree_no = machine.session(proposal.session_no).tree_no
    has_ended = proposal.tree_no == tree_no and machine.tree(proposal.session_no) is None
    return has_ended or proposal.tree_no < tree_no


class RacingEnds:
    """Both ends, the frames under way between them, and what either may do next."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.node = LinkMachine("node")
        self.coordinator = LinkMachine("coordinator")
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.node_sessions: dict[int, NodeSession] = {}
        self.prompts: dict[int, tuple[m.Open, list[int]]] = {}
        self.sessions: dict[int, CoordinatorSession] = {}
        self.leases: dict[bytes, list[int]] = {}
        self.known: dict[bytes, int] = {}
        self.resumes: deque[m.Resume] = deque()
        self.resuming: dict[bytes, int] = {}
        self.last_no = 0
        self.num_leases = 0
        self.seen: Counter[str] = Counter()
        often: list[Callable[[], None]] = [
            self.node_receives,
            self.coordinator_receives,
            self.draft,
            self.propose,
            self.commit,
            self.send_verdict,
            self.send_chunk,
        ]
        seldom = [self.open, self.tune, self.resume, self.answer_resume, self.close, self.release]
        self.actions = often + seldom
        # Every run has habits of its own, so that some build up long queues and others none.
        self.weights: list[float] = [random.choice((4, 10, 40)) for _ in often]
        self.weights += [random.choice((0, 0.1, 1)) for _ in seldom[1:]]
        self.weights.insert(len(often), 1)
        self.to_coordinator(HELLO)
        self.coordinator.receive(self.up.popleft())
        self.to_node(WELCOME)
        self.node.receive(self.down.popleft())

    def act(self) -> None:
        """One random thing out of those that can be done."""
        action = self.random.choices(self.actions, self.weights)[0]
        action()
        self.check_order()

    def to_node(self, *messages: AnyMessage) -> None:
        self.down.append(self.coordinator.send(*messages))

    def to_coordinator(self, *messages: AnyMessage) -> None:
        self.up.append(self.node.send(*messages))

    def pick(self, numbers: list[int]) -> int | None:
        return self.random.choice(numbers) if numbers else None

    # --- the coordinator acts ---

    def open(self) -> None:
        if len(self.sessions) >= 3:
            return
        prompt = [self.random.randrange(NUM_TOKENS) for _ in range(self.random.randint(1, 4))]
        self.last_no += 1
        self.num_leases += 1
        opened = changed(
            OPEN,
            session_no=self.last_no,
            lease_id=self.num_leases.to_bytes(16, "big"),
            max_position=MAX_POSITION,
            wishes=m.GrowthWishes(max_unverified=6),
        )
        self.to_node(open_messages(opened, prompt)[0])
        # Cut further than the builder does, so that other things stand between the chunks.
        chunks = deque(
            m.Prompt(self.last_no, at, pack_tokens(prompt[at : at + 2]))
            for at in range(0, len(prompt), 2)
        )
        self.sessions[self.last_no] = CoordinatorSession(prompt, opened.lease_id, chunks)

    def send_chunk(self) -> None:
        number = self.pick([n for n, s in self.sessions.items() if s.chunks])
        if number is not None:
            self.to_node(self.sessions[number].chunks.popleft())

    def commit(self) -> None:
        number = self.pick(list(self.sessions))
        if number is None:
            return
        session = self.sessions[number]
        token_ids = [self.random.randrange(NUM_TOKENS) for _ in range(self.random.randint(0, 3))]
        tree = self.coordinator.tree(number)
        if tree is not None and tree.is_full and len(tree.tree) and self.random.random() < 0.7:
            token_ids = list(tokens_to(tree.tree, self.random.choice(list(tree.tree))))
            self.seen["hit"] += 1
        token_ids = token_ids[: MAX_POSITION - len(session.committed)]
        restart = self.random.random() < 0.2
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

    def send_verdict(self) -> None:
        number = self.pick([n for n, s in self.sessions.items() if s.unsent and not s.chunks])
        if number is None:
            return
        session = self.sessions[number]
        assert session.unsent is not None
        self.to_node(session.unsent)
        session.unsent = None

    def tune(self) -> None:
        number = self.pick(list(self.sessions))
        if number is None:
            return
        session = self.sessions[number]
        session.max_unverified += self.random.randint(0, 2)
        self.to_node(m.Tune(number, m.GrowthWishes(max_unverified=session.max_unverified)))

    def close(self) -> None:
        number = self.pick(list(self.sessions))
        if number is not None:
            self.keep_lease(number)
            self.to_node(m.Close(number))

    def keep_lease(self, number: int) -> None:
        session = self.sessions.pop(number)
        self.leases[session.lease_id] = session.committed

    def answer_resume(self) -> None:
        if not self.resumes or len(self.sessions) >= 5:
            return
        resume = self.resumes.popleft()
        committed = self.leases.pop(resume.lease_id, None)
        if committed is None or resume.position > len(committed):
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
        missed = pack_tokens(committed[resume.position :])
        session = CoordinatorSession(committed, resume.lease_id, deque())
        session.unsent = m.Verdict(self.last_no, 0, resume.position, missed, 0)
        self.sessions[self.last_no] = session
        self.seen["resumed"] += 1

    # --- the node acts ---

    def draft(self) -> None:
        """Grow one level, and make a proposal of the gain unless one waits to be sent."""
        number = self.pick(list(self.node_sessions))
        if number is None:
            return
        session = self.node_sessions[number]
        frontier = session.growing.frontier()
        if frontier:
            first = self.random.randrange(NUM_TOKENS)
            tokens = (
                np.arange(2)[None, :] + first + np.arange(len(frontier))[:, None]
            ) % NUM_TOKENS
            log_probs = np.full(tokens.shape, -0.1, dtype=np.float32)
            session.growing.expand(frontier, tokens.astype(np.int32), log_probs)
        room = self.node.room(number, session.growing.tree_no)
        if session.held is None and room:
            gain = session.growing.take_gain(min(self.random.randint(1, 9), room))
            if gain is not None:
                session.held = proposal_from_gain(number, gain)

    def propose(self) -> None:
        number = self.pick([n for n, s in self.node_sessions.items() if s.held])
        if number is not None:
            self.flush(self.node_sessions[number])

    def flush(self, session: NodeSession) -> None:
        held, session.held = session.held, None
        if held is not None and is_void(self.node, held):
            self.seen["stale before it was sent"] += 1
        elif held is not None:
            self.to_coordinator(held)
            self.seen["proposal"] += 1

    def release(self) -> None:
        number = self.pick(list(self.node.sessions))
        if number is None:
            return
        self.forget(number)
        self.to_coordinator(m.Release(number))

    def forget(self, number: int) -> None:
        self.prompts.pop(number, None)
        session = self.node_sessions.pop(number, None)
        if session is not None:
            self.known[session.lease_id] = session.growing.num_committed

    def resume(self) -> None:
        for lease, position in self.known.items():
            if lease not in self.resuming:
                self.resuming[lease] = position
                self.to_coordinator(m.Resume(lease, position))
                return

    # --- frames arrive ---

    def node_receives(self) -> None:
        if not self.down:
            return
        before = self.node.num_stale
        for message in self.node.receive(self.down.popleft()):
            self.on_node(message)
        self.seen["left out by the node"] += self.node.num_stale - before

    def on_node(self, message: AnyMessage) -> None:
        match message:
            case m.Open():
                self.on_open(message)
            case m.Refuse():
                del self.resuming[message.lease_id]
                del self.known[message.lease_id]
            case m.Prompt():
                opened, prompt = self.prompts[message.session_no]
                prompt += unpack_tokens(message.token_ids).tolist()
                if len(prompt) == opened.num_tokens:
                    del self.prompts[message.session_no]
                    self.start_drafting(opened, prompt[-1], len(prompt))
            case m.Verdict():
                self.on_verdict(message)
            case m.Tune() if message.session_no in self.node_sessions:
                wishes = message.wishes
                growing = self.node_sessions[message.session_no].growing
                growing.tune(wishes.min_prob, wishes.look_ahead, wishes.max_unverified)
            case m.Close():
                self.forget(message.session_no)
            case _:
                assert isinstance(message, m.Tune)

    def on_open(self, opened: m.Open) -> None:
        if not opened.resumed:
            self.prompts[opened.session_no] = (opened, [])
            return
        position = self.resuming.pop(opened.lease_id)
        del self.known[opened.lease_id]
        assert self.node.committed(opened.session_no) == position
        self.start_drafting(opened, 0, position)

    def on_verdict(self, verdict: m.Verdict) -> None:
        session = self.node_sessions[verdict.session_no]
        self.flush(session)  # made before this verdict, sent after it; indices have no gaps
        ended = verdict.restart_tree_no == session.growing.tree_no
        session.growing.commit(unpack_tokens(verdict.token_ids).tolist())
        if ended and verdict.restart_tree_no == session.growing.tree_no:
            session.growing.restart()

    def start_drafting(self, opened: m.Open, root_token: int, num_committed: int) -> None:
        settings = GrowthSettings(
            beam_width=3, branch_width=2, max_unverified=opened.wishes.max_unverified
        )
        growing = GrowingTree(num_committed, root_token, settings, opened.max_position)
        self.node_sessions[opened.session_no] = NodeSession(growing, opened.lease_id)

    def coordinator_receives(self) -> None:
        if not self.up:
            return
        before = self.coordinator.num_stale
        for message in self.coordinator.receive(self.up.popleft()):
            match message:
                case m.Release():
                    self.keep_lease(message.session_no)
                case m.Resume():
                    self.resumes.append(message)
                case _:
                    assert isinstance(message, m.Proposal)
        self.seen["left out by the coordinator"] += self.coordinator.num_stale - before

    # --- what holds always, and when all is quiet ---

    def check_order(self) -> None:
        """The coordinator is ahead in what it decides, the node in what it proposes."""
        for number in set(self.node.sessions) & set(self.coordinator.sessions):
            behind, ahead = self.node.session(number), self.coordinator.session(number)
            assert behind.num_committed <= ahead.num_committed
            assert behind.max_unverified <= ahead.max_unverified
            assert behind.num_vertices >= ahead.num_vertices

    def settle(self) -> None:
        """Let everything arrive; then both ends must know the same."""
        while self.up or self.down:
            self.node_receives()
            self.coordinator_receives()
        assert self.node.sessions == self.coordinator.sessions == tuple(sorted(self.sessions))
        for number in self.node.sessions:
            assert self.node.session(number) == self.coordinator.session(number)
            ours, theirs = self.node.tree(number), self.coordinator.tree(number)
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert list(ours.tree) == list(theirs.tree)
                assert (ours.matched, ours.next_index) == (theirs.matched, theirs.next_index)


@given(seed=st.integers(0, 2**32 - 1), num_steps=st.integers(1, NUM_STEPS))
def test_honest_ends_never_break_a_rule(seed: int, num_steps: int) -> None:
    ends = RacingEnds(Random(seed))
    for _ in range(num_steps):
        ends.act()
    ends.settle()


def test_the_races_happen() -> None:
    """The test above would prove nothing if its messages never crossed."""
    seen: Counter[str] = Counter()
    for seed in range(20):
        ends = RacingEnds(Random(seed))
        for _ in range(NUM_STEPS):
            ends.act()
        ends.settle()
        seen += ends.seen
    assert set(seen) == {
        "hit",
        "resumed",
        "proposal",
        "stale before it was sent",
        "left out by the node",
        "left out by the coordinator",
    }
