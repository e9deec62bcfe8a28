"""The coordinator's end of a node's link: handshake, proposals in, verdicts out, heartbeat."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from coordinator.engine.ports import Engine
from coordinator.lease import Lease, vertices_of
from coordinator.leases import Leases
from coordinator.ledger.ports import Ledger, SignedReceipt
from coordinator.node_link import NodeLink, NodeTooSlow
from coordinator.settings import Limits, Timing
from coordinator.store.errors import StoreError
from specedge_p2p.names import PeerId
from specedge_p2p.overlay.ports import Link, LinkClosed
from specedge_p2p.wire.errors import ProtocolError
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.messages import (
    PROTOCOL_VERSION,
    Capacity,
    Drain,
    Goodbye,
    Hello,
    Message,
    Ping,
    Pong,
    Proposal,
    Receipt,
    ReceiptRequest,
    Refuse,
    Release,
    Resume,
    Welcome,
)

log = logging.getLogger(__name__)

MAX_RECEIPTS_RESENT = 256


@dataclass(frozen=True, slots=True)
class TargetProfile:
    """What a node is told about the target model, and what its draft model must fit."""

    name: str
    tokenizer_fingerprint: bytes
    vocab_size: int
    max_context: int


class Intake:
    """Serves nodes' links. A bad node costs its own link and nothing else."""

    def __init__(  # noqa: PLR0913 - a shell that joins the parts a link touches
        self,
        engine: Engine,
        leases: Leases,
        ledger: Ledger,
        target: Callable[[], TargetProfile | None],
        limits: Limits,
        timing: Timing,
        clock: Callable[[], float],
        software: str,
        on_proposal: Callable[[int, int], None],
    ) -> None:
        """`on_proposal` is told source and base position when the engine has a proposal."""
        self._engine, self._leases, self._ledger = engine, leases, ledger
        self._target, self._limits, self._timing = target, limits, timing
        self._clock, self._software = clock, software
        self._on_proposal = on_proposal
        self._drain_reason = ""
        self.num_protocol_errors = 0

    async def serve(self, link: Link) -> None:
        """One node, from Hello to its end. Raises nothing that the node could cause."""
        machine = LinkMachine("coordinator")
        try:
            node = await self._handshake(link, machine)
            if node is not None:
                await self._serve_node(node)
        except* ProtocolError as errors:
            self.num_protocol_errors += 1
            log.warning("node %s broke the protocol: %s", link.peer_id, errors.exceptions[0])
        except* (LinkClosed, NodeTooSlow) as errors:
            log.info("link to node %s ended: %s", link.peer_id, errors.exceptions[0])

    def drain(self, reason: str) -> None:
        """Tell every node that the coordinator is about to stop, and take no more of them."""
        self._drain_reason = reason
        for node in self._leases.nodes:
            node.post(Drain(reason))

    async def until_told(self) -> None:
        """Wait until every node has been sent what was queued for it, or is gone."""
        for node in self._leases.nodes:
            await node.until_written()

    def deliver(self, receipt: SignedReceipt) -> None:
        """Send a receipt to its node if it is connected; else it asks for it when it is back."""
        for node in self._leases.nodes:
            if node.peer_id == receipt.peer_id:
                node.post(Receipt(receipt.envelope))

    # --- one link --------------------------------------------------------------------------------

    async def _handshake(self, link: Link, machine: LinkMachine) -> NodeLink | None:
        with trio.move_on_after(self._timing.handshake_s) as scope:
            messages = machine.receive(await link.receive())
        if scope.cancelled_caught:
            log.info("peer %s said nothing for %g s", link.peer_id, self._timing.handshake_s)
            return None
        hello, *rest = messages
        if not isinstance(hello, Hello):  # the machine lets nothing else begin
            raise TypeError(f"a link began with {type(hello).__name__}")
        if rest:
            return None  # the machine lets nothing else follow than Goodbye
        target = self._target()
        refusal = self._refusal(hello, link.peer_id, target)
        if refusal is not None or target is None:
            log.info("node %s refused: %s", link.peer_id, refusal.text if refusal else "")
            await link.send(machine.send(refusal or _not_ready()))
            return None
        welcome = Welcome(
            version=PROTOCOL_VERSION,
            target_model=target.name,
            vocab_size=target.vocab_size,
            max_context=target.max_context,
            heartbeat_s=self._timing.heartbeat_s,
            software=self._software,
        )
        # Queued, not sent: nothing may wait between the look at the limits and the joining.
        node = NodeLink(link, hello, machine, self._clock(), hello.max_sessions)
        node.post(welcome)
        return node

    def _refusal(
        self, hello: Hello, peer_id: PeerId, target: TargetProfile | None
    ) -> Refuse | None:
        if self._drain_reason:
            return Refuse("not_ready", self._drain_reason)
        if not hello.min_version <= PROTOCOL_VERSION <= hello.max_version:
            return Refuse(
                "version",
                f"this coordinator speaks version {PROTOCOL_VERSION}, the node "
                f"{hello.min_version} to {hello.max_version}; update the older of the two",
            )
        if target is None:
            return _not_ready()
        if hello.tokenizer_fingerprint != target.tokenizer_fingerprint:
            return Refuse(
                "tokenizer",
                f"the draft model {hello.draft_model[:100]} has another tokenizer than the target "
                f"{target.name}; choose a draft model of the same family",
            )
        others = [node for node in self._leases.nodes if node.peer_id != peer_id]
        if len(others) >= self._limits.max_nodes:
            return Refuse("full", f"{self._limits.max_nodes} nodes are connected; try again later")
        return None

    async def _serve_node(self, node: NodeLink) -> None:
        async with trio.open_nursery() as nursery:
            with self._joined(node), node.scope:
                nursery.start_soon(node.write_frames, self._clock)
                nursery.start_soon(self._ping, node)
                await self._read(node)
            nursery.cancel_scope.cancel()
        if node.is_too_slow:
            raise NodeTooSlow(f"{node.peer_id} does not read what it is sent")

    @contextmanager
    def _joined(self, node: NodeLink) -> Iterator[None]:
        older = self._leases.join(node)
        if older is not None:
            older.scope.cancel()
        self._leases.rematch()
        log.info("node %s joined with %s", node.peer_id, node.hello.draft_model)
        try:
            yield
        finally:
            self._leases.leave(node)
            self._leases.rematch()
            log.info("node %s left", node.peer_id)

    async def _read(self, node: NodeLink) -> None:
        """Read until the node says goodbye or falls silent."""
        deadline_s = self._silence_s
        while True:
            with trio.move_on_after(deadline_s) as scope:
                frame = await node.link.receive()
            if scope.cancelled_caught:
                log.info("node %s was silent for %g s", node.peer_id, deadline_s)
                return
            self._leases.num_bytes_received += len(frame)
            messages = node.machine.receive(frame)
            if not await self._handle_all(node, messages):
                return
            # A node that changes its mind a thousand times a second costs no more than one review.
            if any(isinstance(message, Capacity | Release) for message in messages):
                self._leases.review()

    async def _handle_all(self, node: NodeLink, messages: Sequence[Message]) -> bool:
        """Whether the node stays. The engine gets what a frame proposes in one piece."""
        proposals: list[tuple[Lease, Proposal]] = []
        for message in messages:
            if isinstance(message, Proposal):
                if (lease := self._leases.accept(node, message)) is not None:
                    proposals.append((lease, message))
                continue
            await self._forward(proposals)
            proposals = []
            if isinstance(message, Goodbye):
                return False
            await self._handle(node, message)
        await self._forward(proposals)
        return True

    @property
    def _silence_s(self) -> float:
        """After so long without a frame in either direction a node is taken for dead."""
        return 3 * self._timing.heartbeat_s

    async def _ping(self, node: NodeLink) -> None:
        nonce = 0
        while True:
            nonce += 1
            node.post(Ping(nonce))
            await trio.sleep(self._timing.heartbeat_s)
            if node.stuck_s(self._clock()) >= self._silence_s:
                node.give_up()
            self._leases.review()

    async def _handle(self, node: NodeLink, message: Message) -> None:
        match message:
            case Pong(nonce):
                node.ponged(nonce, self._clock())
            case Capacity():
                self._leases.hear_capacity(node, message)
            case Release(session_no):
                self._leases.release(node, session_no)
            case Resume():
                self._leases.resume(node, message)
            case ReceiptRequest(after):
                await self._resend_receipts(node, after)

    async def _forward(self, proposals: Sequence[tuple[Lease, Proposal]]) -> None:
        if not proposals:
            return
        await self._engine.send(*(vertices_of(lease, proposal) for lease, proposal in proposals))
        for lease, proposal in proposals:
            self._on_proposal(lease.source, proposal.base_position)

    async def _resend_receipts(self, node: NodeLink, after: int) -> None:
        try:
            receipts = await self._ledger.receipts_after(node.peer_id, after, MAX_RECEIPTS_RESENT)
        except StoreError as error:
            # The node asks again when it misses a receipt; drafting needs no database.
            log.error("node %s waits for its receipts: %s", node.peer_id, error)
            return
        for receipt in receipts:
            node.post(Receipt(receipt.envelope))


def _not_ready() -> Refuse:
    return Refuse("not_ready", "the coordinator is still loading its model; try again in a moment")
