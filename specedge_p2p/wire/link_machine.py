"""The state machine of a link, without I/O: one class for both ends.

Frames go in and messages come out, or the other way round; the caller moves the bytes. What a peer
sends becomes valid messages or one ProtocolError, whatever it is. Both ends apply what they send
and what they receive to the same state by the same code, so they cannot disagree about what is
legal (see `link_session.py` for why messages on their way do no harm).
"""

from specedge_p2p.tree.received_tree import ReceivedTree
from specedge_p2p.wire.codec import AnyMessage, Side, decode_frame, encode_frame
from specedge_p2p.wire.errors import IllegalSend, ProtocolError
from specedge_p2p.wire.link_session import LinkSession, SessionView
from specedge_p2p.wire.messages import (
    MAX_SESSIONS,
    Capacity,
    Close,
    Hello,
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
from specedge_p2p.wire.states import LinkState, state_after

SessionMessage = Prompt | Verdict | Tune | Close | Proposal | Release


class LinkMachine:
    """One end of a link. After ProtocolError or IllegalSend the link must be closed."""

    def __init__(self, side: Side) -> None:
        self._side: Side = side
        self._other: Side = "node" if side == "coordinator" else "coordinator"
        self._state = LinkState.START
        self._we_closed = False
        self._hello: Hello | None = None
        self._welcome: Welcome | None = None
        self._versions = (0, 0)
        self._max_sessions = 0
        self._max_context = 0
        self._vocab_size = 0
        self._last_session_no = 0
        self._sessions: dict[int, LinkSession] = {}
        self._resumes: dict[bytes, int] = {}  # lease -> position, not answered yet
        self._num_stale = 0

    # --- moving messages ---

    def receive(self, frame: bytes) -> tuple[AnyMessage, ...]:
        """The messages of a frame from the peer, checked and applied.

        Left out are those that crossed with a word of ours that makes them void (a proposal for a
        session just closed, a verdict for one just released): they are counted in `num_stale`.
        """
        try:
            decoded = decode_frame(frame, self._side)
            if self._we_closed:
                self._num_stale += len(decoded)
                return ()
            fresh = tuple(message for message in decoded if self._apply(message, ours=False))
        except ProtocolError:
            self._state = LinkState.CLOSED
            raise
        self._num_stale += len(decoded) - len(fresh)
        return fresh

    def send(self, *messages: AnyMessage) -> bytes:
        """One frame with these messages, checked and applied. Raises IllegalSend.

        The frame must then be sent, and in the order of the calls.
        """
        try:
            frame = encode_frame(messages)
            # Read back what was written: the limits of single fields are those of the receiver.
            for message in decode_frame(frame, self._other):
                if not self._apply(message, ours=True):
                    raise ProtocolError("stale", "its tree has ended")
        except (ProtocolError, ValueError, TypeError, OverflowError) as error:
            self._state = LinkState.CLOSED
            raise IllegalSend(str(error)) from error
        self._we_closed = self._state is LinkState.CLOSED
        return frame

    # --- looking at the link ---

    @property
    def state(self) -> LinkState:
        return self._state

    @property
    def hello(self) -> Hello | None:
        return self._hello

    @property
    def welcome(self) -> Welcome | None:
        return self._welcome

    @property
    def num_stale(self) -> int:
        """Messages received and left out because they had crossed with ours."""
        return self._num_stale

    @property
    def sessions(self) -> tuple[int, ...]:
        """Numbers of the sessions that are open at this end, rising."""
        return tuple(self._sessions)

    def is_open(self, session_no: int) -> bool:
        return session_no in self._sessions

    def session(self, session_no: int) -> SessionView:
        """Raises KeyError for a session that is not open."""
        return self._sessions[session_no].view()

    def committed(self, session_no: int) -> int:
        """Number of committed tokens, prompt included. Raises KeyError."""
        return self._sessions[session_no].num_committed

    def tree(self, session_no: int) -> ReceivedTree | None:
        """The node's tree, None before the first and after its end. Not to be changed."""
        return self._sessions[session_no].tree

    def room(self, session_no: int, tree_no: int | None = None) -> int:
        """How many vertices may be proposed now, in the tree that goes on or in tree `tree_no`.

        Without `tree_no` the current tree is meant, or the next one where that has ended. 0 for
        sessions and trees for which nothing may be sent.
        """
        session = self._sessions.get(session_no)
        if session is None or self._state not in (LinkState.OPEN, LinkState.DRAINING):
            return 0
        if tree_no is None:
            tree_no = session.view().tree_no + (session.tree is None)
        return session.room(tree_no)

    # --- applying messages ---

    def _apply(self, message: AnyMessage, *, ours: bool) -> bool:
        """Check and apply; False when the message is stale."""
        before, self._state = self._state, state_after(self._state, message)
        match message:
            case Hello():
                self._greet(message)
            case Welcome():
                self._admit(message)
            case Refuse():
                self._refuse(message, before)
            case Capacity():
                self._max_sessions = max(self._max_sessions, message.max_sessions)
            case Resume():
                self._resume(message)
            case Open():
                self._open(message)
            case Prompt() | Verdict() | Tune() | Close() | Proposal() | Release():
                return self._apply_to_session(message, ours=ours)
            case _:
                pass  # pings, receipts and farewells have no state beyond the link's own
        return True

    def _apply_to_session(self, message: SessionMessage, *, ours: bool) -> bool:
        session = self._sessions.get(message.session_no)
        if session is None:
            if ours or message.session_no > self._last_session_no:
                raise ProtocolError("unknown-session", f"session {message.session_no} is not open")
            return False
        match message:
            case Prompt():
                session.prompt(message)
            case Verdict():
                session.verdict(message)
            case Tune():
                session.tune(message)
            case Proposal():
                return session.propose(message)
            case _:  # Close or Release
                del self._sessions[message.session_no]
        return True

    def _greet(self, hello: Hello) -> None:
        if hello.min_version > hello.max_version:
            raise ProtocolError("bad-hello", "the range of versions is empty")
        self._hello = hello
        self._versions = (hello.min_version, hello.max_version)
        self._max_sessions = hello.max_sessions

    def _admit(self, welcome: Welcome) -> None:
        low, high = self._versions
        if not low <= welcome.version <= high:
            raise ProtocolError("bad-welcome", f"version {welcome.version} was not offered")
        self._welcome = welcome
        self._max_context = welcome.max_context
        self._vocab_size = welcome.vocab_size

    def _refuse(self, refuse: Refuse, before: LinkState) -> None:
        if before is LinkState.GREETED:
            if refuse.lease_id:
                raise ProtocolError("bad-refuse", "a handshake has no lease")
        elif self._resumes.pop(refuse.lease_id, None) is None:
            raise ProtocolError("bad-refuse", "nobody asked to resume this lease")

    def _resume(self, resume: Resume) -> None:
        if resume.lease_id in self._resumes:
            raise ProtocolError("bad-resume", "this lease is being resumed already")
        if len(self._resumes) >= MAX_SESSIONS:
            raise ProtocolError("bad-resume", "too many leases are being resumed")
        self._resumes[resume.lease_id] = resume.position

    def _open(self, opened: Open) -> None:
        if opened.session_no <= self._last_session_no:
            raise ProtocolError("bad-open", "session numbers rise and are never reused")
        if len(self._sessions) >= self._max_sessions:
            raise ProtocolError("bad-open", "more sessions than the node takes")
        if not opened.num_tokens <= opened.max_position <= self._max_context:
            raise ProtocolError("bad-open", "the positions do not fit into the context")
        start: int | None = opened.num_tokens
        if opened.resumed:
            start = self._resumes.pop(opened.lease_id, None)
        if start is None or start > opened.num_tokens:
            raise ProtocolError("bad-open", "what is resumed was not asked for or is too short")
        self._last_session_no = opened.session_no
        self._sessions[opened.session_no] = LinkSession(opened, start, self._vocab_size)
