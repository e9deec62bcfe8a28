"""Who may say what, and when: the one table of the link.

The node speaks first (Hello) and is answered by Welcome or Refuse; from then on both speak freely
until the node says Goodbye or the link breaks. Both ends walk through the same states, each at its
own time: what the other side said before it knew of our last word is on its way still, and the
table is built so that this is never illegal, with one exception that `LinkMachine` takes care of:
what arrives after we ended the link.
"""

from enum import Enum

from specedge_p2p.wire import messages as m
from specedge_p2p.wire.errors import ProtocolError


class LinkState(Enum):
    """How far a link has come, as seen by one end."""

    START = "start"
    GREETED = "greeted"
    """Hello was said; the answer is due."""
    OPEN = "open"
    DRAINING = "draining"
    """As OPEN, but no session is opened any more."""
    CLOSED = "closed"


_NODE_TALK: frozenset[type[m.Message]] = frozenset(
    {m.Proposal, m.Pong, m.Capacity, m.Release, m.Resume, m.ReceiptRequest, m.Goodbye}
)
_COORDINATOR_TALK: frozenset[type[m.Message]] = frozenset(
    {m.Refuse, m.Prompt, m.Verdict, m.Tune, m.Receipt, m.Ping, m.Close}
)  # Refuse answers a Resume here

ALLOWED: dict[LinkState, frozenset[type[m.Message]]] = {
    LinkState.START: frozenset({m.Hello}),
    LinkState.GREETED: frozenset({m.Welcome, m.Refuse, m.Goodbye}),
    LinkState.OPEN: _NODE_TALK | _COORDINATOR_TALK | {m.Open, m.Drain},
    LinkState.DRAINING: _NODE_TALK | _COORDINATOR_TALK,
    LinkState.CLOSED: frozenset(),
}

_MOVES: dict[tuple[LinkState, type[m.Message]], LinkState] = {
    (LinkState.START, m.Hello): LinkState.GREETED,
    (LinkState.GREETED, m.Welcome): LinkState.OPEN,
    (LinkState.GREETED, m.Refuse): LinkState.CLOSED,
    (LinkState.GREETED, m.Goodbye): LinkState.CLOSED,
    (LinkState.OPEN, m.Drain): LinkState.DRAINING,
    (LinkState.OPEN, m.Goodbye): LinkState.CLOSED,
    (LinkState.DRAINING, m.Goodbye): LinkState.CLOSED,
}


def state_after(state: LinkState, message: m.Message) -> LinkState:
    """The state after a message. Raises ProtocolError when it may not be said in this state.

    Who may say it is not asked here: a frame is decoded into messages of its sender only.
    """
    if type(message) not in ALLOWED[state]:
        text = f"{type(message).__name__} may not be said while the link is {state.value}"
        raise ProtocolError("out-of-turn", text)
    return _MOVES.get((state, type(message)), state)
