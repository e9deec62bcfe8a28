"""One connected node as the coordinator sees it: what is known of it, what it is yet to be told."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median_low

import trio

from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import Link
from specedge_p2p.wire.build import merge_verdicts
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.messages import (
    Capacity,
    Close,
    CoordinatorMessage,
    Hello,
    Open,
    Ping,
    Prompt,
    Tune,
    Verdict,
)
from specedge_p2p.wire.states import LinkState

MAX_VERDICTS_PER_FRAME = 64
VERDICT_BYTES_PER_FRAME = 32 * 1024
"""No verdict is added beyond this: with one more and a chunk of a prompt, a frame still fits."""
MAX_OUTBOX = 4096
"""Messages waiting for a node. One that reads so slowly loses its link."""
NUM_ROUND_TRIPS = 7
"""The round trip is the median of so many: a pong that was held up says nothing of the link."""


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
    level_time_s: float = 0.0
    """Of one session, as the node measured it; what each further session adds is the next."""
    level_session_time_s: float = 0.0
    num_drafted: int = 0
    num_accepted: int = 0
    is_too_slow: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Everything that runs for this link; cancelled when the peer connects anew or is too slow."""
    _ping_nonce: int | None = None
    """Of the last ping, until it is answered."""
    _pinged_s: float = 0.0
    _round_trips_s: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_ROUND_TRIPS))
    _last_session_no: int = 0
    _outbox: deque[CoordinatorMessage] = field(default_factory=deque)
    _verdicts: dict[int, deque[Verdict]] = field(default_factory=dict)
    _opening: Counter[int] = field(default_factory=Counter)
    """Queued Open and Prompt messages per session; verdicts of these wait."""
    _wake: trio.Event = field(default_factory=trio.Event)
    _sending_since_s: float | None = None
    _written: trio.Event = field(default_factory=trio.Event)
    """Set while nothing waits to be sent, and for ever when the link has ended."""

    def __post_init__(self) -> None:
        self.level_time_s = self.hello.level_time_s
        self.level_session_time_s = self.hello.level_session_time_s

    @property
    def peer_id(self) -> PeerId:
        return self.link.peer_id

    def new_session_no(self) -> int:
        self._last_session_no += 1
        return self._last_session_no

    def post(self, *messages: CoordinatorMessage) -> None:
        """Queue messages in order. Beyond the limit the link is given up."""
        if len(self._outbox) + len(messages) > MAX_OUTBOX:
            self.give_up()
        if self.is_too_slow:
            return
        self._outbox.extend(messages)
        self._opening.update(m.session_no for m in messages if isinstance(m, Open | Prompt))
        self._touch()

    def post_verdict(self, verdict: Verdict) -> None:
        """Queue a verdict; it is merged with the session's last unsent one where both fit."""
        unsent = self._verdicts.setdefault(verdict.session_no, deque())
        merged = merge_verdicts(unsent[-1], verdict) if unsent else None
        if merged is not None:
            unsent[-1] = merged
        else:
            unsent.append(verdict)
        self._touch()

    def give_up(self) -> None:
        """End the link of a node that does not read, also while a frame waits for room."""
        self.is_too_slow = True
        self.scope.cancel()

    def stuck_s(self, now_s: float) -> float:
        """For how long the frame that is being sent has found no room."""
        return 0.0 if self._sending_since_s is None else now_s - self._sending_since_s

    async def until_written(self) -> None:
        """Wait until nothing is left to be sent, or the link has ended."""
        await self._written.wait()

    def hear_capacity(self, message: Capacity) -> None:
        """What the node says of itself now."""
        self.max_sessions = message.max_sessions
        if message.level_time_s:
            self.level_time_s = message.level_time_s
            self.level_session_time_s = message.level_session_time_s

    def pinged(self, nonce: int, now_s: float) -> None:
        """A ping leaves now."""
        self._ping_nonce, self._pinged_s = nonce, now_s

    def ponged(self, nonce: int, now_s: float) -> None:
        """Only the first answer to the last ping measures anything."""
        if nonce == self._ping_nonce:
            self._ping_nonce = None
            self._round_trips_s.append(now_s - self._pinged_s)
            self.round_trip_s = median_low(self._round_trips_s)

    def forget(self, session_no: int) -> None:
        """Say nothing more about a session that the node has released."""
        self._verdicts.pop(session_no, None)
        self._opening.pop(session_no, None)
        kept = [m for m in self._outbox if getattr(m, "session_no", None) != session_no]
        self._outbox = deque(kept)

    async def write_frames(self, clock: Callable[[], float]) -> None:
        """Send what is queued until the link ends. Prompt chunks alternate with verdicts of others.

        Returns when the node has said goodbye or broken the protocol: nothing may be said any more.
        Raises LinkClosed when the node is gone.
        """
        try:
            while self.machine.state is not LinkState.CLOSED:
                messages = self._next_messages()
                if messages:
                    self._sending_since_s = clock()
                    self._note_pings(messages, self._sending_since_s)
                    await self.link.send(self.machine.send(*messages))
                    self._sending_since_s = None
                elif not self._outbox and not self._has_due_verdicts():
                    self._wake = trio.Event()
                    self._written.set()
                    await self._wake.wait()
        finally:
            self._written.set()

    def _note_pings(self, messages: Sequence[CoordinatorMessage], now_s: float) -> None:
        """The clock starts here: what waited in the queue says nothing of the link."""
        for message in messages:
            if isinstance(message, Ping):
                self.pinged(message.nonce, now_s)

    def _touch(self) -> None:
        """Something is to be sent."""
        if self._written.is_set():
            self._written = trio.Event()
        self._wake.set()

    def _next_messages(self) -> list[CoordinatorMessage]:
        messages = self._due_verdicts()
        if self._outbox:
            messages.extend(self._next_message())
        return [message for message in messages if self._is_wanted(message)]

    def _is_wanted(self, message: CoordinatorMessage) -> bool:
        """A node may have released the session while this waited."""
        if isinstance(message, Prompt | Verdict | Tune | Close):
            return self.machine.is_open(message.session_no)
        return True

    def _has_due_verdicts(self) -> bool:
        return any(not self._opening[no] for no in self._verdicts)

    def _due_verdicts(self) -> list[CoordinatorMessage]:
        due: list[CoordinatorMessage] = []
        num_bytes = 0
        for session_no in [no for no in self._verdicts if not self._opening[no]]:
            if len(due) == MAX_VERDICTS_PER_FRAME or num_bytes >= VERDICT_BYTES_PER_FRAME:
                break
            verdict = self._next_verdict(session_no)
            num_bytes += len(verdict.token_ids)
            due.append(verdict)
        return due

    def _next_verdict(self, session_no: int) -> Verdict:
        """Sessions take turns: one that has more to say goes to the end."""
        unsent = self._verdicts.pop(session_no)
        verdict = unsent.popleft()
        if unsent:
            self._verdicts[session_no] = unsent
        return verdict

    def _next_message(self) -> list[CoordinatorMessage]:
        message = self._outbox[0]
        if isinstance(message, Close) and message.session_no in self._verdicts:
            return []  # what was committed comes before the end
        self._outbox.popleft()
        if isinstance(message, Open | Prompt):
            self._opening[message.session_no] -= 1
        if isinstance(message, Close):
            self._opening.pop(message.session_no, None)
        return [message]
