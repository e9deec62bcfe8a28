"""Nodes and clients that do what Hypothesis tells them, all of it legal."""

from collections.abc import Sequence

import trio

from coordinator.gateway.ports import Refused, TextEvent, Volunteers
from specedge_p2p.overlay.ports import OverlayError
from specedge_p2p.tasks import TaskStatus
from specedge_p2p.wire.codec import AnyMessage
from specedge_p2p.wire.messages import (
    Capacity,
    Goodbye,
    Open,
    ReceiptRequest,
    Release,
    Resume,
)
from specedge_p2p.wire.states import LinkState
from tests.support.links import changed, proposal
from tests.support.scripted_node import HELLO, ScriptedNode, dialled
from tests.support.swarm import Swarm, identity, request

Word = tuple[str, int]
"""One message of a frame: its kind, and a number that chooses among what is possible."""


class NodeActor:
    """An honest node with a mind of its own; at most one link at a time."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        self._swarm = swarm
        self.peer_id = identity(number).peer_id
        self._overlay = swarm.network.join(self.peer_id)
        self._node: ScriptedNode | None = None
        self._known: dict[bytes, int] = {}
        self._resumed: set[bytes] = set()
        self.opened: list[Open] = []

    async def connect(
        self, max_sessions: int, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started(None)
        if self._node is not None:
            return
        try:
            async with dialled(self._swarm, self._overlay) as node:
                await node.say(changed(HELLO, max_sessions=max_sessions))
                self._node, self._resumed = node, set()
                try:
                    await node.read_for_ever()
                finally:
                    self._remember(node)
        except OverlayError:
            pass

    def _remember(self, node: ScriptedNode) -> None:
        self._node = None
        self.opened += [message for message in node.heard if isinstance(message, Open)]
        for session_no in node.machine.sessions:
            view = node.machine.session(session_no)
            if view.is_ready:
                self._known[view.lease_id] = view.num_committed

    async def say(self, words: Sequence[Word]) -> None:
        """All words that are possible now, in one frame."""
        node = self._node
        if node is None or node.machine.state is not LinkState.OPEN:
            return
        free = [no for no in node.machine.sessions if node.machine.session(no).is_ready]
        messages: list[AnyMessage] = []
        for kind, number in words:
            message = self._word(node, kind, number, free)
            if message is not None:
                messages.append(message)
            if isinstance(message, Goodbye):
                break
        try:
            if messages:
                await node.say(*messages)
        except OverlayError:
            pass

    def _word(
        self, node: ScriptedNode, kind: str, number: int, free: list[int]
    ) -> AnyMessage | None:
        if kind == "capacity":
            return Capacity(number)
        if kind == "receipts":
            return ReceiptRequest(number)
        if kind == "goodbye":
            return Goodbye()
        if kind == "resume":
            return self._resume(number)
        if not free:
            return None
        session_no = free.pop(number % len(free))
        return Release(session_no) if kind == "release" else _new_tree(node, session_no)

    def _resume(self, number: int) -> Resume | None:
        leases = [lease for lease in self._known if lease not in self._resumed]
        if not leases:
            return None
        lease = leases[number % len(leases)]
        self._resumed.add(lease)
        return Resume(lease, self._known[lease])


def _new_tree(node: ScriptedNode, session_no: int) -> AnyMessage | None:
    view = node.machine.session(session_no)
    ends = [
        m.max_position for m in node.heard if isinstance(m, Open) and m.session_no == session_no
    ]
    if node.machine.room(session_no, view.tree_no + 1) < 2 or view.num_committed + 2 > ends[0]:
        return None
    return proposal(
        [5, 6],
        [0, 1],
        session_no=session_no,
        tree_no=view.tree_no + 1,
        base_position=view.num_committed,
    )


class ClientActor:
    """Asks for one answer, may be slow to read it, and checks it."""

    def __init__(self, swarm: Swarm, number: int, volunteers: Volunteers) -> None:
        self._swarm = swarm
        self._prompt, self._seed = f"prompt {number}", number
        self.volunteers: Volunteers = volunteers
        self.noise_key = b""

    async def run(self, max_tokens: int, waits_s: float, patience_s: float) -> None:
        asked = request(self._prompt, max_tokens, 0.8, self._seed, self.volunteers)
        tokens: list[int] = []
        try:
            with trio.move_on_after(patience_s):
                async with self._swarm.coordinator.generations.generate(asked) as events:
                    self.noise_key = list(self._swarm.coordinator.sessions)[-1].noise_key
                    await trio.sleep(waits_s)
                    async for event in events:
                        if isinstance(event, TextEvent):
                            tokens += [token.token_id for token in event.tokens]
        except Refused:
            pass
        expected = self._swarm.expected(self._prompt, max_tokens=max_tokens, seed=self._seed)
        assert tokens == expected[: len(tokens)]
