"""Live generations: the one place where tokens are committed and text is made of them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import trio

from coordinator.engine.messages import EntryResult, TokenSource
from coordinator.gateway.ports import (
    FinishEvent,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    GenerationStats,
    GuessedToken,
    Refused,
    TextEvent,
)
from coordinator.scheduler.benefit import Arm
from specedge_p2p.names import PeerId, SessionId
from specedge_p2p.noise import NoiseKey

NGRAM = "ngram"


class TextStream(Protocol):
    """Turns committed tokens into text that may be shown."""

    def push(self, token_id: int) -> tuple[str, bool]:
        """Text that became final by this token, and whether a stop string was completed."""
        ...

    def finish(self) -> tuple[str, bool]:
        """The text that was held back, and whether a stop string cut it."""
        ...


@dataclass(slots=True, eq=False)
class Session:
    """One generation. Only `commit`, `fail` and `close` change it, and none of them waits."""

    number: int
    session_id: SessionId
    request: GenerationRequest
    noise_key: NoiseKey
    max_tokens: int
    text: TextStream
    opened_s: float
    arm: Arm | None = None
    """Its side of the comparison with and without volunteers; None where it takes no part."""
    token_ids: list[int] = field(default_factory=list)
    """Committed tokens, prompt first."""
    num_rounds: int = 0
    num_drafted_rounds: int = 0
    num_drafted_tokens: int = 0
    nodes_by_source: dict[int, PeerId] = field(default_factory=dict)
    """The peer behind each of the engine's source numbers, former ones included."""
    accepted_by_node: dict[PeerId, int] = field(default_factory=dict)
    num_deaths: int = 0
    """Engines that died on this session, one after the other, before they brought a token."""
    num_segments: Counter[PeerId] = field(default_factory=Counter)
    """Segments already cut for the ledger, per node."""
    finish: FinishReason | None = None
    failure: Refused | None = None
    _shown: str = ""
    _guessed: list[GuessedToken] = field(default_factory=list)
    _changed: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.token_ids.extend(self.request.prompt_ids)

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_length

    @property
    def num_accepted(self) -> int:
        return sum(self.accepted_by_node.values())

    @property
    def is_live(self) -> bool:
        return self.finish is None and self.failure is None

    def commit(self, result: EntryResult) -> "Committed":
        """Take the engine's result: the single point where tokens become final.

        A stop string ends the session at the token that completed it; what the engine decided
        beyond never existed. Raises ValueError for a result that does not continue the session.
        """
        if result.from_position != len(self.token_ids):
            raise ValueError(
                f"session {self.number} has {len(self.token_ids)} tokens, "
                f"the engine decided from position {result.from_position}"
            )
        committed = Committed(result.from_position)
        for token_id, source in zip(result.token_ids, result.sources, strict=True):
            text, is_stopped = self.text.push(token_id)
            node = self.nodes_by_source.get(source.source)
            if node is not None:
                self.accepted_by_node[node] = self.accepted_by_node.get(node, 0) + 1
            committed.note(source, is_by_node=node is not None)
            self.token_ids.append(token_id)
            committed.token_ids.append(token_id)
            self._shown += text
            self._guessed.append(GuessedToken(token_id, node or (NGRAM if source.ngram else "")))
            if is_stopped:
                self.finish = "stop"
                break
        self._count_round(result, len(committed.token_ids))
        self.num_deaths = 0
        if result.finish and self.finish is None:
            self.finish = "stop" if result.finish == "stop" else "length"
        if self.finish is not None:
            text, is_stopped = self.text.finish()
            self._shown += text
            self.finish = "stop" if is_stopped else self.finish
        self._wake()
        return committed

    def fail(self, refused: Refused) -> None:
        if self.is_live:
            self.failure = refused
            self._wake()

    async def events(self) -> Iterator[GenerationEvent]:
        """Wait for news and return it; the last event is a FinishEvent. Raises Refused."""
        while not self._guessed and self.is_live:
            await self._changed.wait()
            self._changed = trio.Event()
        if self.failure is not None:
            raise self.failure
        return iter(self._take_events())

    def stats(self) -> GenerationStats:
        return GenerationStats(
            session_id=self.session_id,
            num_prompt_tokens=self.prompt_length,
            num_tokens=self.num_tokens,
            num_rounds=self.num_rounds,
            num_drafted_rounds=self.num_drafted_rounds,
            num_drafted_tokens=self.num_drafted_tokens,
            num_accepted_by_node=dict(self.accepted_by_node),
        )

    def _take_events(self) -> list[GenerationEvent]:
        events: list[GenerationEvent] = []
        if self._guessed or self._shown:
            events.append(TextEvent(self._shown, tuple(self._guessed)))
            self._shown, self._guessed = "", []
        if self.finish is not None:
            events.append(FinishEvent(self.finish, self.stats()))
        return events

    def _count_round(self, result: EntryResult, num_tokens: int) -> None:
        # The first token comes from the prefill, not from a round.
        if not num_tokens or result.from_position == self.prompt_length:
            return
        self.num_rounds += 1
        if result.num_source_rows:
            self.num_drafted_rounds += 1
            self.num_drafted_tokens += num_tokens

    def _wake(self) -> None:
        self._changed.set()


@dataclass(slots=True)
class Committed:
    """What one result added to a session."""

    from_position: int
    token_ids: list[int] = field(default_factory=list)
    accepted_by_source: dict[int, int] = field(default_factory=dict)
    num_second: int = 0
    """Accepted tokens of one node that a second one had guessed too."""
    num_ngram: int = 0
    """Tokens that the n-gram guess had and no node."""
    num_own: int = 0
    """Tokens that only the engine's own draft model had guessed."""

    def note(self, source: TokenSource, *, is_by_node: bool) -> None:
        """One more token was committed."""
        if is_by_node:
            number = source.source
            self.accepted_by_source[number] = self.accepted_by_source.get(number, 0) + 1
            self.num_second += source.second != 0
        elif source.ngram:
            self.num_ngram += 1
        else:
            self.num_own += source.own


class Sessions:
    """The live generations by the number under which the engine knows them."""

    def __init__(self, max_sessions: int) -> None:
        self._max_sessions = max_sessions
        self._live: dict[int, Session] = {}
        self._next_number = 1
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._live.values()))

    def get(self, number: int) -> Session | None:
        return self._live.get(number)

    def next_number(self) -> int:
        """Numbers are never reused, so late messages about an ended session meet nobody."""
        self._next_number += 1
        return self._next_number - 1

    def refuse_when_full(self) -> None:
        """Raises Refused when no session more is taken."""
        if len(self._live) >= self._max_sessions:
            raise Refused(
                503,
                "overloaded",
                f"all {self._max_sessions} sessions of this coordinator are in use; try again",
                retry_after_s=1,
            )

    def add(self, session: Session) -> None:
        self._live[session.number] = session
        self._notify()

    def remove(self, session: Session) -> bool:
        """Whether it was there."""
        if self._live.pop(session.number, None) is None:
            return False
        self._notify()
        return True

    async def until_empty(self) -> None:
        while self._live:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
