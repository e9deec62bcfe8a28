"""The core on a cache that is shared and too small: nothing is lost, nothing computed twice."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import CloseSession, OpenSession
from coordinator.engine.settings import EngineLimits
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from tests.support.cores import PARAMS, PROMPT, WARM, Clock, decode
from tests.support.engine import GREEDY, Run, TreeMaker, batch, open_session

PAGE_ROWS = 4
LIMITS = EngineLimits(max_sessions=256)
NEVER_ENDS = ToyParams(vocab_size=32, eos_bias=-100.0)


class Engine(Run):
    """A core on a toy model with pages; counts what is forwarded."""

    def __init__(self, cache_rows: int, page_rows: int = PAGE_ROWS) -> None:
        self.model = ToyModel(NEVER_ENDS, cache_rows=cache_rows, page_rows=page_rows)
        super().__init__(EngineCore(self.model, Clock(), LIMITS))
        self.opened: dict[int, OpenSession] = {}
        self.expected: dict[int, list[int]] = {}
        self.num_prefilled = self.num_reused = self.num_preempted = 0

    def begin(self, message: OpenSession) -> None:
        self.open(message)
        self.opened[message.session] = message
        self.expected[message.session] = toy_decode(
            NEVER_ENDS,
            message.token_ids,
            message.sampling,
            message.noise_key,
            message.max_tokens,
        )

    def advance(self, **options: object) -> None:
        done = self.step(batch(self.live(), **options))  # type: ignore[arg-type]
        self.num_prefilled += done.num_prefill_rows
        self.num_reused += done.num_reused_rows
        self.num_preempted += len(done.preempted)
        assert self.core.take_failures() == []

    def run_out(self, **options: object) -> None:
        while self.live():
            self.advance(**options)

    def check(self) -> None:
        """Everybody got the target's tokens, and nothing is held any more."""
        for number, opened in self.opened.items():
            assert self.tokens[number] == list(opened.token_ids) + self.expected[number]
            self.core.handle(CloseSession(number))
        assert self.model.num_free_rows == self.model.cache.num_rows


# --- equal beginnings ----------------------------------------------------------------------------


@pytest.mark.parametrize("prefill_tokens", [96, 256, 1000, 100_000])
def test_a_common_beginning_is_prefilled_once(prefill_tokens: int) -> None:
    """50 sessions, 512 common tokens and a few of their own, all there from the start."""
    common = [2 + i * 7 % 29 for i in range(512)]
    engine = Engine(cache_rows=1 << 14, page_rows=16)
    for number in range(50):
        own = [2 + number % 30] * (1 + number % 5)
        engine.begin(open_session(number, common + own, max_tokens=3))
    engine.run_out(prefill_tokens=prefill_tokens)
    num_own = sum(1 + number % 5 for number in range(50))
    assert (engine.num_prefilled, engine.num_reused) == (512 + num_own, 49 * 512)
    engine.check()


def test_a_prompt_that_is_known_in_full_still_computes_its_last_token() -> None:
    engine = Engine(cache_rows=256)
    for number in (1, 2):
        engine.begin(open_session(number, [*PROMPT, 3], max_tokens=2))  # two pages
        engine.run_out()
    assert (engine.num_prefilled, engine.num_reused) == (8 + 4, 4)
    engine.check()


def test_the_next_turn_of_a_talk_begins_with_the_last() -> None:
    engine = Engine(cache_rows=256)
    engine.begin(open_session(1, PROMPT, max_tokens=20))
    engine.run_out(max_rows=0)
    engine.begin(open_session(2, engine.tokens[1] + PROMPT, max_tokens=5))
    engine.run_out()
    assert engine.num_reused == 24  # 26 rows were written before the session ended
    engine.check()


def test_sessions_of_different_keys_share_nothing() -> None:
    engine = Engine(cache_rows=1024)
    for number, salt in enumerate(["", "alice", "bob", "alice"]):
        engine.begin(open_session(number, PROMPT * 4, max_tokens=2, prefix_salt=salt))
    engine.run_out()
    assert engine.num_reused == 24  # alice's second session only
    engine.check()


def test_whoever_waits_for_a_page_goes_on_when_its_writer_leaves() -> None:
    engine = Engine(cache_rows=1024)
    for number in (1, 2):
        engine.begin(open_session(number, PROMPT * 8, max_tokens=4))
    engine.advance(prefill_tokens=6)
    engine.core.handle(CloseSession(1))
    del engine.opened[1], engine.tokens[1], engine.finish[1]
    engine.run_out(prefill_tokens=6)
    assert (engine.num_prefilled, engine.num_reused) == (6 + 52, 4)
    engine.check()


# --- a cache that is too small -------------------------------------------------------------------


def test_200_sessions_of_mixed_length_on_a_quarter_of_the_cache() -> None:
    random = Random(4)
    prompts = [
        [random.randrange(2, 32) for _ in range(random.choice([3, 20, 60, 150]))]
        for _ in range(200)
    ]
    lengths = [random.choice([5, 20, 60, 300]) for _ in range(200)]
    num_rows = sum(len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True))
    engine = Engine(cache_rows=num_rows // 4, page_rows=16)
    for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        sampling = (GREEDY, WARM)[number % 2]
        engine.begin(
            open_session(number, prompt, max_tokens=length, sampling=sampling, seed=number)
        )
    engine.run_out(prefill_tokens=256, max_rows=0)
    engine.check()
    assert engine.num_preempted > 0
    num_computed_twice = engine.num_prefilled - sum(map(len, prompts))
    assert num_computed_twice < num_rows / 5


def test_the_oldest_session_is_never_preempted() -> None:
    engine = Engine(cache_rows=120)
    for number in range(6):
        engine.begin(open_session(number, [*PROMPT, number], max_tokens=100))
    num_steps = 0
    while 0 in engine.live():
        engine.advance(max_rows=0)
        num_steps += 1
    assert num_steps == 100
    assert engine.num_preempted > 0
    engine.run_out()
    engine.check()


@given(seed=st.integers(0, 10_000), cache_pages=st.integers(32, 120))
def test_law1_output_on_any_cache_with_any_trees(seed: int, cache_pages: int) -> None:
    """Sessions come and go, nodes guess, prompts have beginnings in common, and room is short."""
    random = Random(seed)
    engine = Engine(cache_rows=cache_pages * PAGE_ROWS)
    beginnings = [[random.randrange(2, 32) for _ in range(24)] for _ in range(2)]
    makers: dict[int, TreeMaker] = {}
    for number in range(random.randrange(2, 12)):
        prompt = random.choice(beginnings)[: random.randrange(1, 25)]
        engine.begin(
            open_session(
                number,
                [*prompt, random.randrange(2, 32)],
                max_tokens=random.choice([1, 10, 100]),
                sampling=random.choice([GREEDY, WARM]),
                seed=number,
                prefix_salt=random.choice(["", "key"]),
            )
        )
        makers[number] = TreeMaker(number, 1, random)
        for _ in range(random.randrange(6)):
            guess(engine, makers, random)
            engine.advance(prefill_tokens=random.choice([1, 7, 100]), sources=[1])
        if random.random() < 0.2:
            gone = random.choice(engine.live() or [number])
            engine.core.handle(CloseSession(gone))
            del engine.opened[gone]
            engine.finish[gone] = "closed"
    while engine.live():
        guess(engine, makers, random)
        engine.advance(prefill_tokens=20, sources=[1], max_sessions=random.choice([0, 3]))
    engine.check()


def guess(engine: Engine, makers: dict[int, TreeMaker], random: Random) -> None:
    """A node that is sometimes right says something about one live session."""
    if not (live := engine.live()):
        return
    number = random.choice(live)
    session = engine.core.session(number)
    assert session is not None
    num_known = len(session.token_ids)
    makers[number].restart(num_known)
    ahead = engine.expected[number][num_known - engine.opened[number].prompt_length :][:6]
    if ahead:
        engine.core.handle(makers[number].chain(ahead))
    engine.core.handle(makers[number].random_vertices(4, 32))


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    core = EngineCore(ToyModel(PARAMS, cache_rows=64), Clock())
    core.handle(open_session(1, PROMPT, max_tokens=59))
    core.handle(open_session(2, PROMPT, max_tokens=58))
    (failure,) = core.take_failures()
    assert (failure.session, failure.code) == (1, "out_of_cache")
    assert "may need 65 rows of cache and there are 64" in failure.text
    run = Run(core)
    run.tokens[2], run.finish[2], run.results[2] = list(PROMPT), "", []
    run.finish_all()
    assert run.tokens[2] == PROMPT + decode(PROMPT, 58)
