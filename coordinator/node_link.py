"""One connected node as the coordinator sees it: what is known of it, what it is yet to be told."""

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import accumulate

import trio

from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import Link
from specedge_p2p.wire.build import merge_verdicts
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.messages import Close, CoordinatorMessage, Hello, Open, Prompt, Verdict

MAX_VERDICTS_PER_FRAME = 64
MAX_VERDICT_BYTES_PER_FRAME = 32 * 1024
"""Of token ids; what else goes into the frame has room beside them."""
MAX_OUTBOX = 4096
"""Messages waiting for a node. One that reads so slowly loses its link."""


class NodeTooSlow(Exception):
    """The node does not read what it is sent."""


@dataclass(slots=True)
class NodeLink:
    """Nobody ever waits for a node: what it must hear is queued here and sent by `write_frames`.

    Unsent verdicts of one session are merged, so a slow link costs a few at most.
    """

    link: Link
    hello: Hello
    machine: LinkMachine
    connected_s: float
    max_sessions: int
    round_trip_s: float | None = None
    num_drafted: int = 0
    num_accepted: int = 0
    is_too_slow: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Everything that runs for this link; cancelled when the peer connects anew."""
    _ping_nonce: int = 0
    _pinged_s: float = 0.0
    _last_session_no: int = 0
    _outbox: deque[CoordinatorMessage] = field(default_factory=deque)
    _verdicts: dict[int, deque[Verdict]] = field(default_factory=dict)
    _opening: Counter[int] = field(default_factory=Counter)
    """Queued Open and Prompt messages per session; verdicts of these wait."""
    _wake: trio.Event = field(default_factory=trio.Event)

    @property
    def peer_id(self) -> PeerId:
        return self.link.peer_id

    def new_session_no(self) -> int:
        self._last_session_no += 1
        return self._last_session_no

    def post(self, *messages: CoordinatorMessage) -> None:
        """Queue messages in order. Beyond the limit the link is given up by `write_frames`."""
        if len(self._outbox) + len(messages) > MAX_OUTBOX:
            self.is_too_slow = True
        else:
            self._outbox.extend(messages)
            self._opening.update(m.session_no for m in messages if isinstance(m, Open | Prompt))
        self._wake.set()

    def post_verdict(self, verdict: Verdict) -> None:
        """Queue a verdict; it is merged with the session's last unsent one where both fit."""
        unsent = self._verdicts.setdefault(verdict.session_no, deque())
        merged = merge_verdicts(unsent[-1], verdict) if unsent else None
        if merged is not None:
            unsent[-1] = merged
        else:
            unsent.append(verdict)
        self._wake.set()

    def pinged(self, nonce: int, now_s: float) -> None:
        self._ping_nonce, self._pinged_s = nonce, now_s

    def ponged(self, nonce: int, now_s: float) -> None:
        """Only the answer to the last ping measures anything."""
        if nonce == self._ping_nonce:
            self.round_trip_s = now_s - self._pinged_s

    def forget(self, session_no: int) -> None:
        """Say nothing more about a session that the node has released."""
        self._verdicts.pop(session_no, None)
        self._opening.pop(session_no, None)
        kept = [m for m in self._outbox if getattr(m, "session_no", None) != session_no]
        self._outbox = deque(kept)

    async def write_frames(self) -> None:
        """Send what is queued, for ever. Prompt chunks alternate with the verdicts of others.

        Raises NodeTooSlow when the node has stopped reading, LinkClosed when it is gone.
        """
        while True:
            messages = self._due_verdicts()
            if self._outbox:
                messages.extend(self._next_message())
            if self.is_too_slow:
                raise NodeTooSlow(f"{self.peer_id} does not read its messages")
            messages = [message for message in messages if self._is_wanted(message)]
            if messages:
                await self.link.send(self.machine.send(*messages))
            elif not self._outbox and not self._has_due_verdicts():
                self._wake = trio.Event()
                await self._wake.wait()

    def _is_wanted(self, message: CoordinatorMessage) -> bool:
        """A node may have released the session while this waited."""
        if isinstance(message, Prompt | Verdict | Close):
            return self.machine.is_open(message.session_no)
        return True

    def _has_due_verdicts(self) -> bool:
        return any(not self._opening[no] for no in self._verdicts)

    def _due_verdicts(self) -> list[CoordinatorMessage]:
        """One verdict of each session, as far as one frame holds them; the rest come next.

        Much waits at once when a slow link gets going again or a node resumes all its sessions.
        """
        due = [no for no in self._verdicts if not self._opening[no]][:MAX_VERDICTS_PER_FRAME]
        sizes = accumulate(len(self._verdicts[no][0].token_ids) for no in due)
        fits = [
            no for no, size in zip(due, sizes, strict=True) if size <= MAX_VERDICT_BYTES_PER_FRAME
        ]
        return [self._next_verdict(no) for no in fits]

    def _next_verdict(self, session_no: int) -> Verdict:
        unsent = self._verdicts[session_no]
        verdict = unsent.popleft()
        if not unsent:
            del self._verdicts[session_no]
        return verdict

    def _next_message(self) -> list[CoordinatorMessage]:
        message = self._outbox.popleft()
        if isinstance(message, Open | Prompt):
            self._opening[message.session_no] -= 1
        if isinstance(message, Close):
            if message.session_no in self._verdicts:
                self._outbox.appendleft(message)  # in a frame after the last verdict
                return [self._next_verdict(message.session_no)]
            self._opening.pop(message.session_no, None)
        return [message]
