"""Two ends of a link and the messages that tests send over it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import numpy as np

from specedge_p2p.tree.draft_tree import Candidates
from specedge_p2p.tree.growth import Gain
from specedge_p2p.wire import messages as m
from specedge_p2p.wire.build import open_messages
from specedge_p2p.wire.codec import AnyMessage
from specedge_p2p.wire.columns import pack_tokens, proposal_from_gain
from specedge_p2p.wire.link_machine import LinkMachine

_M = TypeVar("_M", bound=m.Message)
LEASE = b"l" * 16
VOCAB_SIZE = 50
MAX_CONTEXT = 200

HELLO = m.Hello(1, 1, "draft", b"m" * 16, b"t" * 16, max_sessions=8, level_time_s=0.01)
WELCOME = m.Welcome(1, "target", VOCAB_SIZE, MAX_CONTEXT, heartbeat_s=5.0)
OPEN = m.Open(
    session_no=1,
    lease_id=LEASE,
    num_tokens=3,
    noise_key=b"k" * 16,
    temperature=0.7,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    max_position=100,
    role="active",
    wishes=m.GrowthWishes(max_unverified=16),
)
PROMPT = (1, 2, 3)


def changed(message: _M, **fields: object) -> _M:
    return msgspec.structs.replace(message, **fields)


def proposal(
    token_ids: Sequence[int],
    parents: Sequence[int],
    *,
    session_no: int = 1,
    tree_no: int = 1,
    first_index: int = 1,
    base_position: int = len(PROMPT),
) -> m.Proposal:
    columns = Candidates(
        np.array(token_ids, dtype=np.int32),
        np.array(parents, dtype=np.int32),
        np.full(len(token_ids), -0.5, dtype=np.float32),
    )
    return proposal_from_gain(session_no, Gain(tree_no, first_index, base_position, columns))


def verdict(
    token_ids: Sequence[int],
    from_position: int = len(PROMPT),
    *,
    session_no: int = 1,
    round_no: int = 1,
    num_accepted: int = 0,
    restart_tree_no: int = 0,
) -> m.Verdict:
    return m.Verdict(
        session_no,
        round_no,
        from_position,
        pack_tokens(token_ids),
        num_accepted,
        restart_tree_no=restart_tree_no,
    )


@dataclass
class Ends:
    """Both ends of a link without delay."""

    node: LinkMachine = field(default_factory=lambda: LinkMachine("node"))
    coordinator: LinkMachine = field(default_factory=lambda: LinkMachine("coordinator"))

    def say(self, *messages: AnyMessage) -> tuple[AnyMessage, ...]:
        """The node sends; what the coordinator took."""
        return self.coordinator.receive(self.node.send(*messages))

    def answer(self, *messages: AnyMessage) -> tuple[AnyMessage, ...]:
        """The coordinator sends; what the node took."""
        return self.node.receive(self.coordinator.send(*messages))


def greeted() -> Ends:
    ends = Ends()
    ends.say(HELLO)
    return ends


def opened() -> Ends:
    ends = greeted()
    ends.answer(WELCOME)
    return ends


def with_session(token_ids: Sequence[int] = PROMPT, **fields: object) -> Ends:
    ends = opened()
    ends.answer(*open_messages(changed(OPEN, **fields), token_ids))
    return ends
