"""What a node knows of its sessions, across links: the sans-I/O half of the worker.

Messages that the link machine let through go in; what the drafter must do is done at once; what
has to be answered comes out. A session has a *handle* that is unique for the life of the process
and names it in the drafter, and a number on the current link that dies with the link. A lease ties
the two together after a reconnect.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.drafter import Drafter, DraftRequest, Shed
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.names import PeerId
from specedge_p2p.wire.columns import proposal_from_gain, unpack_tokens
from specedge_p2p.wire.messages import (
    Close,
    Drain,
    Message,
    Open,
    Prompt,
    Proposal,
    Refuse,
    Release,
    Resume,
    Tune,
    Verdict,
    Welcome,
)

log = logging.getLogger(__name__)


class Room(Protocol):
    """The part of the link machine that says how much may be sent."""

    def room(self, session_no: int, tree_no: int | None = None) -> int: ...


@dataclass(frozen=True, slots=True)
class Tally:
    """Running totals of this process."""

    num_verdicts: int = 0
    num_committed: int = 0
    num_accepted: int = 0
    num_sent: int = 0
    num_resumed: int = 0


@dataclass(slots=True)
class _Desk:
    """One session on the current link."""

    session_no: int
    handle: int
    opened: Open
    prompt: list[int] = field(default_factory=list)
    is_drafting: bool = False


class Desk:
    """All sessions of a node."""

    def __init__(self, drafter: Drafter, max_sessions: int) -> None:
        self._drafter = drafter
        self._max_sessions = max_sessions
        self._coordinator: PeerId | None = None
        self._vocab_size = 0
        self._leases: dict[bytes, int] = {}  # lease id -> handle, in order of age
        self._sessions: dict[int, _Desk] = {}  # by number on the link
        self._next_handle = 0
        self._tally = Tally()
        self.is_draining = False

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    @property
    def tally(self) -> Tally:
        return self._tally

    def begin_link(self, coordinator: PeerId, welcome: Welcome) -> list[Resume]:
        """A new link is open: the leases to resume on it."""
        self._sessions.clear()
        self.is_draining = False
        if coordinator != self._coordinator:  # a lease means nothing to anybody else
            for lease_id in list(self._leases):
                self._drop_lease(lease_id)
        self._coordinator = coordinator
        self._vocab_size = welcome.vocab_size
        known = set(self._drafter.session_nos)
        for lease_id in [key for key, handle in self._leases.items() if handle not in known]:
            self._drop_lease(lease_id)
        return [
            Resume(lease_id, self._drafter.num_tokens(handle))
            for lease_id, handle in self._leases.items()
        ]

    def end_link(self) -> None:
        """The link is gone; what is drafted waits for the next one."""
        in_use = set(self._leases.values())
        for session in self._sessions.values():
            if session.handle not in in_use:
                self._drafter.close(session.handle)
        self._sessions.clear()

    def apply(self, messages: Iterable[Message]) -> list[Release]:
        """Apply what the coordinator said, in order; returns what must be answered."""
        replies: list[Release] = []
        for message in messages:
            match message:
                case Open():
                    replies += self._open(message)
                case Prompt():
                    self._prompt(message)
                case Verdict():
                    replies += self._verdict(message)
                case Tune(session_no=session_no, wishes=wishes):
                    session = self._sessions.get(session_no)
                    if session is not None and session.is_drafting:
                        self._drafter.tune(session.handle, wishes)
                case Close():
                    self._end(message)
                case Refuse(lease_id=lease_id):
                    self._drop_lease(lease_id)
                case Drain():
                    self.is_draining = True
                case _:
                    pass  # the worker's own: pings, receipts
        return replies

    def shed(self, shed: Sequence[Shed]) -> list[Release]:
        """The drafter gave sessions up: tell the coordinator about those that are still open."""
        replies: list[Release] = []
        for gone in shed:
            for session in list(self._sessions.values()):
                if session.handle == gone.session_no:
                    replies += self._release(session, gone.reason)
        return replies

    def gains(self, machine: Room) -> list[Proposal]:
        """What all trees gained since the last call, as far as it may be sent."""
        proposals = []
        for session in self._sessions.values():
            if session.is_drafting:
                room = machine.room(session.session_no, self._drafter.tree_no(session.handle))
                gain = self._drafter.gains(session.handle, room)
                if gain is not None:
                    self._count(num_sent=len(gain.candidates))
                    proposals.append(proposal_from_gain(session.session_no, gain))
        return proposals

    # --- messages ---------------------------------------------------------------------------------

    def _open(self, message: Open) -> list[Release]:
        if any(session.opened.lease_id == message.lease_id for session in self._sessions.values()):
            return [Release(message.session_no, "the lease is in use already")]
        if message.resumed:
            return self._open_again(message)
        self._drop_lease(message.lease_id)
        self._forget_unanswered()
        session = _Desk(message.session_no, self._next_handle, message)
        self._next_handle += 1
        self._sessions[message.session_no] = session
        if len(self._sessions) > self._max_sessions:
            return self._release(session, "no place left")
        return []

    def _open_again(self, message: Open) -> list[Release]:
        handle = self._leases.get(message.lease_id)
        session = _Desk(message.session_no, -1 if handle is None else handle, message)
        self._sessions[message.session_no] = session
        if handle is None or handle not in self._drafter.session_nos:
            return self._release(session, "the session is not here any more")
        session.is_drafting = True
        self._drafter.resume(handle, message.wishes)
        self._count(num_resumed=1)
        return []

    def _prompt(self, message: Prompt) -> None:
        session = self._sessions.get(message.session_no)
        if session is None or session.is_drafting:
            return  # released while the chunk travelled
        session.prompt += unpack_tokens(message.token_ids).tolist()
        opened = session.opened
        if len(session.prompt) < opened.num_tokens:
            return
        sampling = SamplingParams(opened.temperature, opened.top_k, opened.top_p, opened.min_p)
        request = DraftRequest(
            token_ids=session.prompt,
            sampling=sampling,
            key=opened.noise_key,
            max_position=opened.max_position,
            vocab_size=self._vocab_size,
            wishes=opened.wishes,
        )
        self._drafter.open(session.handle, request)
        self._leases[opened.lease_id] = session.handle
        session.prompt = []
        session.is_drafting = True

    def _verdict(self, message: Verdict) -> list[Release]:
        session = self._sessions.get(message.session_no)
        if session is None:
            return []  # released while the verdict travelled
        token_ids = unpack_tokens(message.token_ids).tolist()
        handle = session.handle
        if not session.is_drafting or self._drafter.num_tokens(handle) != message.from_position:
            return self._release(session, "a verdict does not follow what is committed here")
        self._drafter.commit(handle, token_ids)
        if message.restart_tree_no == self._drafter.tree_no(handle):  # else a new one began anyway
            self._drafter.restart(handle)
        self._count(num_verdicts=1, num_committed=len(token_ids), num_accepted=message.num_accepted)
        return []

    def _close(self, session_no: int) -> None:
        session = self._sessions.pop(session_no, None)
        if session is not None:
            self._drafter.close(session.handle)
            self._leases.pop(session.opened.lease_id, None)

    def _end(self, message: Close) -> None:
        is_last = [*self._sessions] == [message.session_no]
        self._close(message.session_no)
        if message.rest_s and is_last:  # it is said with each of them
            log.info("resting for %.0f s: too few of its guesses were used", message.rest_s)

    def _release(self, session: _Desk, reason: str) -> list[Release]:
        self._close(session.session_no)
        return [Release(session.session_no, reason)]

    def _drop_lease(self, lease_id: bytes) -> None:
        handle = self._leases.pop(lease_id, None)
        if handle is not None:
            self._drafter.close(handle)

    def _forget_unanswered(self) -> None:
        """Leases that the coordinator does not answer must not keep places for ever."""
        in_use = {session.handle for session in self._sessions.values()}
        waiting = [key for key, handle in self._leases.items() if handle not in in_use]
        num_free = self._max_sessions - len(self._sessions)
        for lease_id in waiting[: max(0, len(waiting) - num_free + 1)]:
            self._drop_lease(lease_id)

    def _count(self, **more: int) -> None:
        now = self._tally
        self._tally = Tally(
            num_verdicts=now.num_verdicts + more.get("num_verdicts", 0),
            num_committed=now.num_committed + more.get("num_committed", 0),
            num_accepted=now.num_accepted + more.get("num_accepted", 0),
            num_sent=now.num_sent + more.get("num_sent", 0),
            num_resumed=now.num_resumed + more.get("num_resumed", 0),
        )
