"""Helpers of the engine's tests: drive a core, and make good, random and hostile trees."""

from collections.abc import Sequence
from random import Random

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import (
    AddVertices,
    EntryResult,
    LevelTerms,
    OpenSession,
    SourceFactor,
    StepDone,
    StepEntry,
    VerificationBatch,
)
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.noise import noise_key, seed_bytes
from specedge_p2p.wire.columns import pack_log_probs, pack_parents, pack_tokens

GREEDY = SamplingParams(temperature=0.0)
HIT_RATES = [0.6, 0.5, 0.4]


def open_session(
    session: int,
    token_ids: Sequence[int],
    *,
    prompt_length: int | None = None,
    max_tokens: int = 16,
    sampling: SamplingParams = GREEDY,
    seed: int = 0,
    ignore_eos: bool = False,
    prefix_salt: str = "",
) -> OpenSession:
    length = len(token_ids) if prompt_length is None else prompt_length
    return OpenSession(
        session=session,
        token_ids=list(token_ids),
        prompt_length=length,
        max_tokens=max_tokens,
        sampling=sampling,
        noise_key=noise_key(seed_bytes(seed), list(token_ids[:length])),
        ignore_eos=ignore_eos,
        prefix_salt=prefix_salt,
    )


def batch(
    sessions: Sequence[int],
    *,
    step_no: int = 1,
    max_rows: int = 8,
    sources: Sequence[int] = (),
    row_price: float = 0.0,
    hit_rates: Sequence[float] = HIT_RATES,
    prefill_tokens: int = 1000,
    max_sessions: int = 0,
    must: Sequence[int] = (),
    levels: LevelTerms | None = None,
) -> VerificationBatch:
    factors = [SourceFactor(source, 1.0) for source in sources]
    return VerificationBatch(
        step_no=step_no,
        entries=[
            StepEntry(session, max_rows, factors, must=session in must) for session in sessions
        ],
        row_price=row_price,
        ngram_hit_rates=list(hit_rates),
        prefill_tokens=prefill_tokens,
        max_sessions=max_sessions,
        levels=levels,
    )


def vertices(
    session: int,
    source: int,
    base_position: int,
    token_ids: Sequence[int],
    *,
    parents: Sequence[int] | None = None,
    log_probs: Sequence[float] | None = None,
    tree_no: int = 1,
    first_index: int = 1,
) -> AddVertices:
    """Vertices as columns; by default a chain below the tree's last vertex, all quite probable."""
    count = len(token_ids)
    chain = range(first_index - 1, first_index - 1 + count)
    return AddVertices(
        session=session,
        source=source,
        tree_no=tree_no,
        first_index=first_index,
        base_position=base_position,
        token_ids=pack_tokens(list(token_ids)),
        parents=pack_parents(list(chain if parents is None else parents)),
        log_probs=pack_log_probs([-0.1] * count if log_probs is None else list(log_probs)),
    )


class Run:
    """Drives a core and collects what it says per session, checking that it fits together."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, str] = {}
        self.results: dict[int, list[EntryResult]] = {}
        self.step_no = 0

    def open(self, message: OpenSession) -> None:
        self.core.handle(message)
        self.tokens[message.session] = list(message.token_ids)
        self.results.setdefault(message.session, [])
        self.finish[message.session] = ""

    def step(self, step: VerificationBatch) -> StepDone:
        done = self.core.step(step)
        for result in done.results:
            self._take(result)
        return done

    def live(self) -> list[int]:
        return [session for session, finish in self.finish.items() if not finish]

    def finish_all(self, max_steps: int = 500, **options: object) -> int:
        """Step all live sessions to their end; returns the number of steps."""
        for num_steps in range(max_steps):
            if not self.live():
                return num_steps
            self.step(batch(self.live(), **options))  # type: ignore[arg-type]
        raise AssertionError("the sessions do not end")

    def _take(self, result: EntryResult) -> None:
        known = self.tokens[result.session]
        assert result.from_position == len(known)
        assert len(result.sources) == len(result.token_ids)
        assert not self.finish[result.session], "a finished session brought a result"
        known += result.token_ids
        self.finish[result.session] = result.finish
        self.results[result.session].append(result)


class TreeMaker:
    """A node of sorts: keeps the wire's counters and sends what a test wants."""

    def __init__(self, session: int, source: int, random: Random) -> None:
        self.session, self.source, self._random = session, source, random
        self._tree_no = 0
        self._next_index = 1
        self._siblings: dict[int, set[int]] = {}
        self._base = 0

    def restart(self, base_position: int) -> None:
        self._tree_no += 1
        self._next_index = 1
        self._siblings = {0: set()}
        self._base = base_position

    def chain(self, token_ids: Sequence[int]) -> AddVertices:
        """A new chain below the tree's root, or below a random vertex when it clashes."""
        parents, kept, at = [], [], 0
        for token in token_ids:
            if token in self._siblings[at]:
                break
            kept.append(token)
            parents.append(at)
            at = self._add(at, token)
        return self._message(kept, parents)

    def random_vertices(self, count: int, vocab_size: int) -> AddVertices:
        tokens, parents = [], []
        for _ in range(count):
            parent = self._random.choice(sorted(self._siblings))
            token = self._random.randrange(vocab_size)
            if token not in self._siblings[parent]:
                tokens.append(token)
                parents.append(parent)
                self._add(parent, token)
        return self._message(tokens, parents)

    def _add(self, parent: int, token: int) -> int:
        self._siblings[parent].add(token)
        index = self._next_index
        self._siblings[index] = set()
        self._next_index += 1
        return index

    def _message(self, tokens: list[int], parents: list[int]) -> AddVertices:
        return vertices(
            self.session,
            self.source,
            self._base,
            tokens,
            parents=parents,
            log_probs=[-self._random.random() * 3 for _ in tokens],
            tree_no=self._tree_no,
            first_index=self._next_index - len(tokens),
        )
