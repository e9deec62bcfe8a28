"""A coordinator for tests of the node: the real link machine, the toy target, no engine."""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from specedge_p2p.identity.keys import Identity
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.toy import ToyParams, toy_decode
from specedge_p2p.noise import noise_key
from specedge_p2p.overlay.ports import Link, LinkClosed
from specedge_p2p.wire.build import open_messages
from specedge_p2p.wire.codec import AnyMessage
from specedge_p2p.wire.columns import pack_tokens
from specedge_p2p.wire.link_machine import LinkMachine
from specedge_p2p.wire.messages import (
    Close,
    Goodbye,
    GrowthWishes,
    Hello,
    Open,
    Ping,
    Pong,
    Proposal,
    Receipt,
    ReceiptRequest,
    Refuse,
    Release,
    Resume,
    Verdict,
    Welcome,
)

TARGET = ToyParams(eos_bias=-60.0)
SAMPLING = SamplingParams(temperature=0)


@dataclass
class Generation:
    """One generation: what it must yield and how far it is."""

    lease_id: bytes
    prompt: list[int]
    num_new: int
    truth: list[int] = field(init=False)
    tokens: list[int] = field(init=False)
    num_accepted: int = 0
    num_rounds: int = 0
    session_no: int | None = None

    def __post_init__(self) -> None:
        self.key = noise_key(self.lease_id, self.prompt)
        self.truth = self.prompt + toy_decode(TARGET, self.prompt, SAMPLING, self.key, self.num_new)
        self.tokens = list(self.prompt)

    @property
    def is_done(self) -> bool:
        return len(self.tokens) >= len(self.truth)


class ScriptedCoordinator:
    """Serves links one after the other; generations outlive them."""

    def __init__(
        self, identity: Identity, *, step_s: float = 0.02, heartbeat_s: float = 2.0
    ) -> None:
        self.identity = identity
        self.step_s = step_s
        self.heartbeat_s = heartbeat_s
        self.generations: dict[bytes, Generation] = {}
        self.refusal: tuple[str, str] | None = None
        self.is_pinging = True
        self.receipts: list[bytes] = []
        self.received: list[tuple[float, AnyMessage]] = []
        self.hellos: list[Hello] = []
        self.num_links = 0
        self.on_link: Callable[[], None] = lambda: None
        self.extra: list[AnyMessage] = []
        self._next_no = 0

    def add(self, number: int, num_new: int = 60, num_prompt: int = 8) -> Generation:
        prompt = [2 + (number * 7 + i * 3) % 29 for i in range(num_prompt)]
        generation = Generation(number.to_bytes(16, "big"), prompt, num_new)
        self.generations[generation.lease_id] = generation
        return generation

    def fall_silent(self) -> None:
        self.is_pinging = False

    @property
    def is_done(self) -> bool:
        return all(generation.is_done for generation in self.generations.values())

    def count(self, kind: type[AnyMessage]) -> int:
        return sum(isinstance(message, kind) for _, message in self.received)

    async def handle(self, link: Link) -> None:
        self.num_links += 1
        machine = LinkMachine("coordinator")
        (hello,) = machine.receive(await link.receive())
        assert isinstance(hello, Hello)
        self.hellos.append(hello)
        if self.refusal is not None:
            await link.send(machine.send(Refuse(*self.refusal)))
            return
        await link.send(machine.send(Welcome(1, "toy", 32, 4096, self.heartbeat_s)))
        for generation in self.generations.values():
            generation.session_no = None
        self.on_link()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, link, machine)
                nursery.start_soon(self._steps, link, machine)
                nursery.start_soon(self._ping, link, machine)
        except* LinkClosed:
            pass

    async def _read(self, link: Link, machine: LinkMachine) -> None:
        while True:
            for message in machine.receive(await link.receive()):
                self.received.append((trio.current_time(), message))
                match message:
                    case Resume(lease_id=lease_id, position=position):
                        await self._resume(link, machine, lease_id, position)
                    case Release(session_no=session_no):
                        self._released(session_no)
                    case ReceiptRequest(after_sequence=after):
                        for envelope in self.receipts[after:]:
                            await self._send_receipt(link, machine, envelope)
                    case Goodbye():
                        raise LinkClosed("goodbye")
                    case Proposal() | Pong():
                        pass

    def _released(self, session_no: int) -> None:
        for generation in self.generations.values():
            if generation.session_no == session_no:
                generation.session_no = -1

    async def _send_receipt(self, link: Link, machine: LinkMachine, envelope: bytes) -> None:
        await link.send(machine.send(Receipt(envelope)))

    def _opened(self, generation: Generation, *, resumed: bool) -> Open:
        self._next_no += 1
        generation.session_no = self._next_no
        return Open(
            session_no=self._next_no,
            lease_id=generation.lease_id,
            num_tokens=len(generation.tokens),
            noise_key=generation.key,
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            max_position=len(generation.truth),
            role="active",
            wishes=GrowthWishes(),
            resumed=resumed,
        )

    async def _resume(
        self, link: Link, machine: LinkMachine, lease_id: bytes, position: int
    ) -> None:
        generation = self.generations.get(lease_id)
        if generation is None or position > len(generation.tokens):
            await link.send(machine.send(Refuse("unknown-lease", "no such lease", lease_id)))
            return
        opened = self._opened(generation, resumed=True)
        missed = pack_tokens(generation.tokens[position:])
        verdict = Verdict(opened.session_no, generation.num_rounds, position, missed, 0)
        await link.send(machine.send(opened, verdict))

    async def _steps(self, link: Link, machine: LinkMachine) -> None:
        self._next_no = 0
        await trio.sleep(4 * self.step_s)  # resumes come first
        while True:
            await trio.sleep(self.step_s)
            messages: list[AnyMessage] = []
            for generation in self.generations.values():
                messages += self._step(generation, machine)
            messages += self.extra
            self.extra = []
            if messages:
                await link.send(machine.send(*messages))

    def _step(self, generation: Generation, machine: LinkMachine) -> list[AnyMessage]:
        if generation.is_done:
            return []
        messages: list[AnyMessage] = []
        if generation.session_no is None:
            opened = self._opened(generation, resumed=False)
            return list(open_messages(opened, generation.tokens))
        accepted = self._accepted(generation, machine)
        start = len(generation.tokens)
        new = generation.truth[start : start + accepted + 1]
        accepted = min(accepted, len(new))
        generation.tokens += new
        generation.num_rounds += 1
        generation.num_accepted += accepted
        if machine.is_open(generation.session_no):
            messages.append(
                Verdict(
                    generation.session_no, generation.num_rounds, start, pack_tokens(new), accepted
                )
            )
            if generation.is_done:
                messages.append(Close(generation.session_no, "done"))
        return messages

    def _accepted(self, generation: Generation, machine: LinkMachine) -> int:
        number = generation.session_no
        assert number is not None
        tree = machine.tree(number) if machine.is_open(number) else None
        if tree is None or not tree.is_full:
            return 0
        vertex, count = tree.tree.root_vertex, 0
        for token_id in generation.truth[len(generation.tokens) :]:
            child = vertex.children.get(token_id)
            if child is None:
                break
            vertex, count = child, count + 1
        return count

    async def _ping(self, link: Link, machine: LinkMachine) -> None:
        nonce = 0
        while True:
            await trio.sleep(self.heartbeat_s)
            nonce += 1
            if self.is_pinging:
                await link.send(machine.send(Ping(nonce)))
