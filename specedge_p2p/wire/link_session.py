"""One session on one link, as either end knows it by the messages sent and received.

The coordinator is ahead of the node in verdicts and the node is ahead of it in vertices, and still
both check the same limits. That works because every limit is wider at the coordinator: it has sent
at least the verdicts, restarts and raises that the node has received when it proposes, and what
survives its verdicts is a part of what survives the node's. So an honest node, which checks before
it sends, can never pass a limit at the other end.
"""

from array import array
from dataclasses import dataclass

from specedge_p2p.tree.draft_tree import Candidates, TreeError
from specedge_p2p.tree.received_tree import ReceivedTree
from specedge_p2p.wire.columns import candidates, unpack_tokens
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.messages import (
    MAX_PROPOSAL_VERTICES,
    MAX_TREE_INDEX,
    TREE_INDEX_TO_RESTART,
    Open,
    Prompt,
    Proposal,
    Role,
    Tune,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class SessionView:
    """What is known of one session at one end of a link.

    Args:
        num_committed: committed tokens, prompt included, by the verdicts sent or received.
        is_ready: the prompt is complete, so verdicts and proposals may be sent.
        tree_no: number of the node's last tree, 0 before the first.
        num_live: vertices below the committed path.
        num_vertices: all vertices ever proposed.
    """

    session_no: int
    lease_id: bytes
    num_committed: int
    is_ready: bool
    role: Role
    tree_no: int
    num_live: int
    num_vertices: int
    num_verdicts: int
    max_unverified: int


class LinkSession:
    """Checks and applies what is said about one session; every fault is a ProtocolError."""

    def __init__(self, opened: Open, start: int, vocab_size: int) -> None:
        """`start` is the position from which on committed tokens come in verdicts."""
        self._opened = opened
        self._vocab_size = vocab_size
        self._start = start
        self._num_prompt = start if opened.resumed else 0
        self._committed = array("i")  # from `start` on: a tree may begin at any of them
        self._role = opened.role
        self._round_no = 0
        self._max_unverified = opened.wishes.max_unverified
        self._num_verdicts = 0
        self._num_restarts = 0
        self._num_vertices = 0
        self._tree_no = 0
        self._base_position = 0
        self._tree: ReceivedTree | None = None

    @property
    def is_ready(self) -> bool:
        return self._num_prompt == self._start

    @property
    def num_committed(self) -> int:
        return self._start + len(self._committed)

    @property
    def tree(self) -> ReceivedTree | None:
        """The node's tree, None before the first and after its end."""
        return self._tree

    def view(self) -> SessionView:
        return SessionView(
            session_no=self._opened.session_no,
            lease_id=self._opened.lease_id,
            num_committed=self.num_committed,
            is_ready=self.is_ready,
            role=self._role,
            tree_no=self._tree_no,
            num_live=self._tree.num_live if self._tree else 0,
            num_vertices=self._num_vertices,
            num_verdicts=self._num_verdicts,
            max_unverified=self._max_unverified,
        )

    # --- from the coordinator ---

    def prompt(self, message: Prompt) -> None:
        token_ids = self._checked_tokens(message.token_ids)
        if message.offset != self._num_prompt:
            raise ProtocolError("bad-prompt", "a chunk of the prompt does not continue the last")
        if message.offset + len(token_ids) > self._start:
            raise ProtocolError("bad-prompt", "the prompt is longer than announced")
        self._num_prompt += len(token_ids)

    def verdict(self, message: Verdict) -> None:
        if not self.is_ready:
            raise ProtocolError("bad-verdict", "a verdict before the end of the prompt")
        token_ids = self._checked_tokens(message.token_ids)
        if message.from_position != self.num_committed:
            text = f"position {message.from_position} instead of {self.num_committed}"
            raise ProtocolError("bad-verdict", text)
        if message.from_position + len(token_ids) > self._opened.max_position:
            raise ProtocolError("bad-verdict", "committed tokens beyond the last position")
        if message.num_accepted > len(token_ids):
            raise ProtocolError("bad-verdict", "more tokens accepted than committed")
        if message.round_no < self._round_no:
            raise ProtocolError("bad-verdict", "a verdict of an earlier round")
        if message.restart_tree_no > self._tree_no:
            raise ProtocolError("bad-verdict", "an end to a tree that never began")
        self._round_no = message.round_no
        self._role = message.role
        self._num_verdicts += 1
        self._committed.extend(token_ids)
        if message.restart_tree_no:
            self._num_restarts += 1
        if message.restart_tree_no == self._tree_no:
            self._tree = None
        if self._tree is not None:
            self._tree.commit(token_ids)

    def tune(self, message: Tune) -> None:
        if message.wishes.max_unverified < self._max_unverified:
            raise ProtocolError("bad-tune", "max_unverified may only be raised")
        self._max_unverified = message.wishes.max_unverified

    # --- from the node ---

    def room(self, tree_no: int) -> int:
        """Vertices that may be proposed now for tree `tree_no`; 0 when it may not be sent."""
        if not self.is_ready:
            return 0
        if tree_no == self._tree_no and self._tree is not None:
            live, next_index = self._tree.num_live, self._tree.next_index
        elif tree_no == self._tree_no + 1 and tree_no <= self._max_tree_no():
            live, next_index = 0, 1
        else:
            return 0
        room = min(
            self._max_unverified - live,
            self._max_vertices(tree_no) - self._num_vertices,
            MAX_TREE_INDEX + 1 - next_index,
            MAX_PROPOSAL_VERTICES,
        )
        return max(room, 0)

    def is_stale(self, message: Proposal) -> bool:
        """Its tree has ended: the node could not know when it sent this."""
        ended = message.tree_no == self._tree_no and self._tree is None
        return ended or message.tree_no < self._tree_no

    def propose(self, message: Proposal) -> bool:
        """Take a proposal; False when it is stale, which is nobody's fault."""
        vertices = candidates(message)
        if not self.is_ready:
            raise ProtocolError("bad-proposal", "a proposal before the end of the prompt")
        if self.is_stale(message):
            self._num_vertices += len(vertices)
            return False
        self._check_columns(message, vertices)
        tree = self._tree_of(message)
        if self._num_vertices + len(vertices) > self._max_vertices(message.tree_no):
            raise ProtocolError("too-many-vertices", "more vertices than verdicts allow")
        try:
            tree.extend(message.first_index, vertices)
        except TreeError as error:
            raise ProtocolError("bad-tree", str(error)) from error
        self._num_vertices += len(vertices)
        self._tree, self._tree_no = tree, message.tree_no
        self._base_position = message.base_position
        if tree.num_live > self._max_unverified:
            raise ProtocolError("too-many-vertices", f"{tree.num_live} vertices await a verdict")
        return True

    def _tree_of(self, message: Proposal) -> ReceivedTree:
        if message.tree_no == self._tree_no and self._tree is not None:
            if message.first_index != self._tree.next_index:
                text = f"index {message.first_index} instead of {self._tree.next_index}"
                raise ProtocolError("bad-tree", text)
            if message.base_position != self._base_position:
                raise ProtocolError("bad-tree", "the tree has moved to another position")
            return self._tree
        if message.tree_no != self._tree_no + 1 or message.first_index != 1:
            raise ProtocolError("bad-tree", "a tree begins with the next number and index 1")
        if message.tree_no > self._max_tree_no():
            raise ProtocolError("too-many-trees", "more trees than verdicts allow")
        behind = message.base_position - self._start
        if not 0 <= behind <= len(self._committed):
            raise ProtocolError("bad-tree", "a tree begins at a position that is not committed")
        # The root's token may stand before `start`, where it is not known; nothing here needs it.
        root_token = self._committed[behind - 1] if behind else 0
        known = self._committed[behind:].tolist()
        last = self._opened.max_position
        return ReceivedTree(message.tree_no, message.base_position, known, root_token, last)

    def _check_columns(self, message: Proposal, vertices: Candidates) -> None:
        last_index = message.first_index + len(vertices) - 1
        if last_index > MAX_TREE_INDEX:
            raise ProtocolError("bad-tree", f"index {last_index} is too high")
        if int(vertices.token_ids.max()) >= self._vocab_size:
            raise ProtocolError("bad-token", "a token outside the vocabulary")

    def _max_tree_no(self) -> int:
        by_size = self._num_vertices // TREE_INDEX_TO_RESTART
        return 1 + self._num_verdicts + self._num_restarts + by_size

    def _max_vertices(self, num_trees: int) -> int:
        return self._max_unverified * (self._num_verdicts + num_trees)

    def _checked_tokens(self, packed: bytes) -> list[int]:
        token_ids = unpack_tokens(packed)
        if len(token_ids) and int(token_ids.max()) >= self._vocab_size:
            raise ProtocolError("bad-token", "a token outside the vocabulary")
        listed: list[int] = token_ids.tolist()
        return listed
