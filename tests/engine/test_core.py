"""The core against the reference decoder: whatever nodes send, the tokens are the target's."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.core import EngineCore
from coordinator.engine.measure import StepPrice
from coordinator.engine.messages import (
    AddVertices,
    CloseSession,
    DropSource,
    EntryResult,
    TokenSource,
)
from coordinator.engine.settings import EngineLimits
from specedge_p2p.lm.ports import ModelError, Rows, SamplingParams, TokenIds
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from specedge_p2p.lm.toy_text import EOS
from specedge_p2p.noise import noise_key, seed_bytes
from tests.support.engine import GREEDY, Run, TreeMaker, batch, open_session, vertices

PARAMS = ToyParams(vocab_size=32)
WARM = SamplingParams(temperature=0.8, top_k=12, top_p=0.95)
PROMPT = [5, 9, 7, 5, 9, 7, 3]


class Clock:
    """Seconds that pass by themselves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def make_core(
    params: ToyParams = PARAMS,
    limits: EngineLimits | None = None,
    max_context: int = 4096,
    cache_rows: int = 1 << 20,
) -> EngineCore:
    return EngineCore(
        ToyModel(params, max_context=max_context, cache_rows=cache_rows), Clock(), limits
    )


def make_run(max_context: int = 4096, cache_rows: int = 1 << 20) -> Run:
    return Run(make_core(max_context=max_context, cache_rows=cache_rows))


def decode(
    prompt: Sequence[int],
    max_tokens: int = 16,
    sampling: SamplingParams = GREEDY,
    params: ToyParams = PARAMS,
    seed: int = 0,
) -> list[int]:
    key = noise_key(seed_bytes(seed), list(prompt))
    return toy_decode(params, prompt, sampling, key, max_tokens)


def only(results: Sequence[EntryResult]) -> EntryResult:
    (result,) = results
    return result


# --- the plain engine ----------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_law1_output_of_plain_rows_is_the_references(sampling: SamplingParams) -> None:
    run = make_run()
    run.open(open_session(1, PROMPT, sampling=sampling))
    num_steps = run.finish_all(max_rows=0)
    assert run.tokens[1] == PROMPT + decode(PROMPT, sampling=sampling)
    assert run.finish[1] == "length"
    assert num_steps == 16


def test_prefill_goes_in_chunks_in_the_order_of_the_entries() -> None:
    run = make_run()
    run.open(open_session(1, PROMPT))
    run.open(open_session(2, PROMPT[:5]))
    done = run.step(batch([1, 2], prefill_tokens=4))
    assert [(r.session, r.token_ids) for r in done.results] == [(1, [])]
    assert (done.num_forward_rows, done.num_prefill_rows) == (4, 4)
    done = run.step(batch([1, 2], prefill_tokens=4))
    assert [r.session for r in done.results] == [1, 2]
    first = done.results[0]
    assert first.from_position == len(PROMPT)
    assert first.token_ids == decode(PROMPT)[:1]
    assert first.sources == [TokenSource()]
    done = run.step(batch([1, 2], prefill_tokens=0, max_rows=0))
    assert [r.session for r in done.results] == [1]  # a starved prompt brings nothing
    run.finish_all(prefill_tokens=1)
    assert run.tokens[2] == PROMPT[:5] + decode(PROMPT[:5])


def test_prefill_has_a_bound_of_its_own() -> None:
    run = Run(make_core(limits=EngineLimits(max_prefill_rows=3)))
    run.open(open_session(1, PROMPT))
    assert run.step(batch([1], prefill_tokens=10**9)).num_forward_rows == 3


def test_a_step_without_sessions_is_empty() -> None:
    done = make_run().step(batch([1, 2], step_no=7))
    assert (done.step_no, done.results, done.num_forward_rows) == (7, [], 0)
    assert done.started_s < done.ended_s
    assert done.bind_s > 0


def test_entries_of_ended_and_closed_sessions_are_no_ops() -> None:
    run = make_run()
    run.open(open_session(1, PROMPT, max_tokens=1))
    run.open(open_session(2, PROMPT))
    run.step(batch([1, 2]))
    assert run.finish[1] == "length"
    run.core.handle(CloseSession(2))
    run.core.handle(CloseSession(2))
    assert run.step(batch([1, 2])).results == []
    assert run.core.num_sessions == 1
    run.core.handle(CloseSession(1))
    assert run.core.num_sessions == 0


def test_a_session_named_twice_counts_once() -> None:
    run = make_run()
    run.open(open_session(1, PROMPT))
    run.step(batch([1, 1]))
    assert len(run.step(batch([1, 1])).results) == 1


# --- how sessions end ----------------------------------------------------------------------------


def eos_params() -> ToyParams:
    return ToyParams(vocab_size=32, eos_bias=1.0)


def test_ends_at_the_end_of_sequence_token() -> None:
    expected = decode(PROMPT, 200, params=eos_params())
    assert expected[-1] == EOS
    run = Run(make_core(eos_params()))
    run.open(open_session(1, PROMPT, max_tokens=200))
    run.finish_all(max_rows=0)
    assert run.tokens[1] == PROMPT + expected
    assert run.finish[1] == "stop"


def test_a_path_beyond_the_end_of_sequence_is_cut() -> None:
    expected = decode(PROMPT, 200, params=eos_params())
    run = Run(make_core(eos_params()))
    run.open(open_session(1, PROMPT, max_tokens=200))
    run.step(batch([1]))
    run.core.handle(vertices(1, 3, len(PROMPT) + 1, [*expected[1:], 4, 5]))
    run.step(batch([1], max_rows=64, sources=[3]))
    assert run.tokens[1] == PROMPT + expected
    assert run.finish[1] == "stop"
    assert run.results[1][-1].sources[-1].source == 3  # the end itself was guessed


def test_ignored_ends_of_sequence_do_not_end() -> None:
    run = Run(make_core(eos_params()))
    run.open(open_session(1, PROMPT, max_tokens=60, ignore_eos=True))
    run.finish_all()
    assert run.finish[1] == "length"
    assert len(run.tokens[1]) == len(PROMPT) + 60
    assert EOS in run.tokens[1]


def test_no_row_is_spent_where_its_choice_could_not_stand() -> None:
    run = make_run()
    run.open(open_session(1, PROMPT, max_tokens=4))
    run.step(batch([1]))
    right = decode(PROMPT)
    run.core.handle(vertices(1, 5, len(PROMPT) + 1, right[1:4]))
    done = run.step(batch([1], sources=[5], hit_rates=[0, 0, 0], row_price=0.01))
    # Three tokens are left: two guesses and the bonus token.
    assert [(result.num_rows, result.finish) for result in done.results] == [(2, "length")]
    assert run.tokens[1] == PROMPT + right[:4]


def test_the_context_limit_ends_before_anything_is_reported() -> None:
    run = make_run(max_context=len(PROMPT) + 5)
    run.open(open_session(1, PROMPT, max_tokens=100))
    run.step(batch([1]))
    run.core.handle(vertices(1, 3, len(PROMPT) + 1, [*decode(PROMPT, 40)[1:]]))
    run.finish_all(max_rows=64, sources=[3])
    assert run.tokens[1] == PROMPT + decode(PROMPT, 5)
    assert run.finish[1] == "length"


def test_pages_are_freed_at_the_finish() -> None:
    model = ToyModel(PARAMS, cache_rows=100)
    run = Run(EngineCore(model, Clock()))
    run.open(open_session(1, PROMPT, max_tokens=3))
    run.finish_all()
    assert model.num_free_rows == 100
    run.core.handle(vertices(1, 3, len(PROMPT), [4]))  # late guesses find nobody
    session = run.core.session(1)
    assert session is not None
    assert session.num_sources == 0


# --- trees ---------------------------------------------------------------------------------------


def started(sessions: Sequence[int] = (1,), cache_rows: int = 1 << 20) -> Run:
    """A run whose sessions have their first token."""
    run = make_run(cache_rows=cache_rows)
    for session in sessions:
        run.open(open_session(session, PROMPT))
    run.step(batch(sessions))
    return run


def test_guesses_are_accepted_and_named() -> None:
    run = started()
    right = decode(PROMPT)
    run.core.handle(vertices(1, 3, len(PROMPT) + 1, right[1:4]))
    done = run.step(batch([1], sources=[3], hit_rates=[0, 0, 0], row_price=0.01))
    result = only(done.results)
    assert result.token_ids == right[1:5]
    assert [s.source for s in result.sources] == [3, 3, 3, 0]
    assert (result.num_rows, result.num_source_rows) == (3, 3)
    assert done.num_forward_rows == 4


def test_the_first_arrival_gets_the_credit() -> None:
    run = started()
    right = decode(PROMPT)
    base = len(PROMPT) + 1
    run.core.handle(vertices(1, 8, base, right[1:2]))
    run.core.handle(vertices(1, 3, base, right[1:4]))
    run.core.handle(vertices(1, 8, base, right[2:4], first_index=2))
    for_both = batch([1], sources=[3, 8], hit_rates=[0, 0, 0], row_price=0.01)
    result = only(run.step(for_both).results)
    assert result.token_ids == right[1:5]
    assert [(s.source, s.second) for s in result.sources] == [(8, 3), (3, 8), (3, 8), (0, 0)]


def test_sources_that_the_batch_does_not_name_bring_nothing() -> None:
    run = started()
    run.core.handle(vertices(1, 3, len(PROMPT) + 1, decode(PROMPT)[1:4]))
    result = only(run.step(batch([1], sources=[4], hit_rates=[0, 0, 0], row_price=0.01)).results)
    assert result.num_rows == 0


def test_late_guesses_are_salvaged() -> None:
    run = started()
    right = decode(PROMPT)
    run.step(batch([1], max_rows=0))
    run.step(batch([1], max_rows=0))
    run.core.handle(vertices(1, 3, len(PROMPT) + 1, right[1:6]))
    result = only(run.step(batch([1], sources=[3], hit_rates=[0, 0, 0], row_price=0.01)).results)
    assert result.token_ids == right[3:7]
    assert result.num_rows == 3


def test_a_dropped_source_is_forgotten() -> None:
    run = started()
    run.core.handle(vertices(1, 3, len(PROMPT) + 1, decode(PROMPT)[1:4]))
    run.core.handle(DropSource(1, 3))
    run.core.handle(DropSource(2, 3))
    result = only(run.step(batch([1], sources=[3], hit_rates=[0, 0, 0], row_price=0.01)).results)
    assert result.num_rows == 0
    right = decode(PROMPT)
    run.core.handle(vertices(1, 3, len(PROMPT) + 2, right[2:3], first_index=4))  # extends nothing
    assert only(run.step(batch([1], sources=[3])).results).num_source_rows == 0


def broken_trees(base: int) -> list[AddVertices]:
    return [
        vertices(1, 3, base, [4, 4], parents=[0, 0]),  # equal siblings
        vertices(1, 3, base, [4], parents=[1]),  # its own parent
        vertices(1, 3, base, [999]),  # outside the vocabulary
        AddVertices(1, 3, 1, 1, base, b"\1", b"", b""),  # broken columns
    ]


@pytest.mark.parametrize("case", range(4))
def test_a_broken_tree_costs_its_source_only(case: int) -> None:
    run = started()
    base = len(PROMPT) + 1
    run.core.handle(vertices(1, 8, base, decode(PROMPT)[1:3]))
    run.core.handle(broken_trees(base)[case])
    session = run.core.session(1)
    assert session is not None
    assert session.num_sources == 1
    run.finish_all(sources=[3, 8])
    assert run.tokens[1] == PROMPT + decode(PROMPT)


def test_gaps_stale_trees_and_positions_ahead_bring_nothing() -> None:
    run = started()
    session = run.core.session(1)
    assert session is not None
    base = len(PROMPT) + 1
    for bad_base in (0, base + 1):
        run.core.handle(vertices(1, 3, bad_base, [4]))
        assert session.num_sources == 0
    run.core.handle(vertices(1, 3, base, [4, 5], tree_no=2))
    run.core.handle(vertices(1, 3, base, [6, 7, 8], tree_no=1))
    assert session.num_live(3) == 2
    run.core.handle(vertices(1, 3, base, [6], tree_no=2, first_index=9))
    assert session.num_sources == 0
    run.core.handle(vertices(9, 3, base, [6]))  # nobody's session


def test_the_ngram_guess_is_judged_and_reported() -> None:
    # two tokens that are ever chosen repeat themselves soon
    params = ToyParams(vocab_size=4, eos_bias=-99.0)
    run = Run(make_core(params))
    run.open(open_session(1, [2, 3, 2, 3, 2], max_tokens=120, ignore_eos=True))
    run.finish_all(row_price=0.0)
    results = run.results[1][1:-1]  # the last token brings no row, so it names no guess
    assert {r.ngram_order for r in results} >= {2, 3}
    for result in results:
        by_ngram = [s for s in result.sources if s.ngram]
        assert result.ngram_hit == bool(by_ngram)
        assert all(s.source == 0 for s in by_ngram)
    assert any(r.ngram_hit for r in results)


def test_the_ngram_guess_is_judged_even_where_it_is_too_dear() -> None:
    run = Run(make_core(ToyParams(vocab_size=4, eos_bias=-99.0)))
    run.open(open_session(1, [2, 3, 2, 3, 2], max_tokens=60, ignore_eos=True))
    run.finish_all(row_price=0.5, hit_rates=[0.1])
    results = run.results[1][1:]
    assert sum(r.num_rows for r in results) == 0
    assert any(r.ngram_hit for r in results)
    assert any(r.ngram_order and not r.ngram_hit for r in results)


def test_a_guess_that_ngrams_had_too_says_so() -> None:
    params = ToyParams(vocab_size=4, eos_bias=-99.0)
    prompt = [2, 3, 2, 3, 2]
    right = decode(prompt, 60, params=params)
    run = Run(make_core(params))
    run.open(open_session(1, prompt, max_tokens=60, ignore_eos=True))
    run.step(batch([1]))
    run.core.handle(vertices(1, 3, len(prompt) + 1, right[1:]))
    run.finish_all(sources=[3])
    both = [s for r in run.results[1] for s in r.sources if s.source and s.ngram]
    alone = [s for r in run.results[1] for s in r.sources if s.source and not s.ngram]
    assert both
    assert alone


# --- the output law ------------------------------------------------------------------------------

ACTIONS = ("step", "step", "step", "good", "random", "hostile", "reopen")


class Swarm:
    """Sessions, honest, random and hostile nodes, in the order that a Random gives them."""

    def __init__(self, random: Random, params: ToyParams, sampling: SamplingParams) -> None:
        self.random, self.params = random, params
        self.max_context = random.choice([24, 4096])
        self.run = Run(make_core(params, max_context=self.max_context))
        self.expected: dict[int, list[int]] = {}
        self.opened = {}
        self.makers: dict[tuple[int, int], TreeMaker] = {}
        for session in range(1, random.randint(2, 4)):
            prompt = [random.randrange(2, params.vocab_size) for _ in range(random.randint(1, 12))]
            message = open_session(
                session,
                prompt,
                max_tokens=random.randint(1, 16),
                sampling=sampling,
                seed=session,
            )
            self.opened[session] = message
            self.run.open(message)
            room = min(message.max_tokens, self.max_context - len(prompt))
            self.expected[session] = prompt + decode(prompt, room, sampling, params, session)

    def act(self, action: str) -> None:
        session = self.random.choice(sorted(self.opened))
        if action == "step":
            self.step()
        elif action == "reopen":
            self.reopen()
        else:
            self.send(session, action)

    def step(self) -> None:
        numbers = self.random.sample(sorted(self.opened), self.random.randint(1, len(self.opened)))
        self.run.step(
            batch(
                numbers,
                max_rows=self.random.choice([0, 1, 3, 8, 64]),
                sources=[1, 2, 3],
                row_price=self.random.choice([0.0, 0.05, 0.5]),
                prefill_tokens=self.random.choice([0, 2, 100]),
            )
        )

    def send(self, session: int, kind: str) -> None:
        source = {"good": 1, "random": 2, "hostile": 3}[kind]
        fresh = TreeMaker(session, source, self.random)
        maker = self.makers.setdefault((session, source), fresh)
        known = len(self.run.tokens[session])
        base = self.random.randint(1, known)
        if maker is fresh or kind != "random" or self.random.random() < 0.3:
            maker.restart(base)
        if kind == "good":
            self.run.core.handle(maker.chain(self.expected[session][base : base + 8]))
        elif kind == "random":
            self.run.core.handle(maker.random_vertices(20, self.params.vocab_size))
        else:
            self.run.core.handle(self.random.choice(hostile(session, base)))

    def reopen(self) -> None:
        """The engine dies; the coordinator's tokens are all that is left."""
        self.makers.clear()
        tokens, finish = self.run.tokens, self.run.finish
        self.run = Run(make_core(self.params, max_context=self.max_context))
        for session, message in self.opened.items():
            if finish[session]:
                self.run.tokens[session], self.run.finish[session] = tokens[session], "gone"
                continue
            known = tokens[session]
            self.run.open(
                open_session(
                    session,
                    known,
                    prompt_length=message.prompt_length,
                    max_tokens=message.max_tokens,
                    sampling=message.sampling,
                    seed=session,
                )
            )


def hostile(session: int, base: int) -> list[AddVertices]:
    junk = AddVertices(session, 3, 5, 1, base, b"\xff" * 6, b"\xff" * 4, b"\0\0")
    return [
        junk,
        vertices(session, 3, base, [4, 4], parents=[0, 0], tree_no=6),
        vertices(session, 3, base + 10_000, [4, 5]),
        vertices(session, 3, base, [4, 5], first_index=77),
        vertices(session, 3, base, list(range(2, 30)), parents=[0] * 28, log_probs=[0.0] * 28),
        vertices(session, 3, -base, [4, 5]),
    ]


@given(
    seed=st.integers(0, 2**32),
    eos_bias=st.sampled_from([-8.0, 0.0]),
    sampling=st.sampled_from([GREEDY, WARM]),
    vocab_size=st.sampled_from([4, 32]),
    actions=st.lists(st.sampled_from(ACTIONS), max_size=40),
)
@settings(max_examples=80, deadline=None)
def test_law1_output_is_the_references_whatever_nodes_send(
    seed: int, eos_bias: float, sampling: SamplingParams, vocab_size: int, actions: list[str]
) -> None:
    params = ToyParams(vocab_size=vocab_size, eos_bias=eos_bias)
    swarm = Swarm(Random(seed), params, sampling)
    for action in actions:
        swarm.act(action)
    swarm.run.finish_all(sources=[1, 2, 3])
    for session, expected in swarm.expected.items():
        assert swarm.run.tokens[session] == expected


# --- nobody waits for a node ---------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), max_rows=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_law3_critical_path_no_step_waits_for_a_node(seed: int, max_rows: int) -> None:
    """Each step commits for every live session, and useless nodes never cost a step."""
    random = Random(seed)
    alone, useless, good = started((1, 2)), started((1, 2)), started((1, 2))
    num_alone = alone.finish_all(max_rows=0, hit_rates=[0, 0, 0])
    makers = [TreeMaker(session, 1, random) for session in (1, 2)]
    num_useless = 0
    while useless.live():
        for maker in makers:
            if random.random() < 0.5 or not useless.results[1]:
                maker.restart(len(PROMPT))
                useless.core.handle(maker.random_vertices(20, PARAMS.vocab_size))
        live = useless.live()
        done = useless.step(batch(live, max_rows=max_rows, sources=[1], hit_rates=[0, 0, 0]))
        assert all(result.token_ids for result in done.results)
        assert {result.session for result in done.results} == set(live)
        num_useless += 1
    assert num_useless <= num_alone
    for session in (1, 2):
        good.core.handle(vertices(session, 1, len(PROMPT) + 1, decode(PROMPT)[1:]))
    num_good = good.finish_all(max_rows=max_rows, sources=[1], hit_rates=[0, 0, 0])
    assert num_good <= num_alone
    if max_rows:
        assert num_good < num_alone


def test_law3_critical_path_the_first_token_comes_without_nodes() -> None:
    run = make_run()
    run.open(open_session(1, PROMPT))
    assert only(run.step(batch([1])).results).token_ids == decode(PROMPT)[:1]


# --- refusals and bounds -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "options", "code"),
    [
        ([], {}, "bad_prompt"),
        ([5], {"prompt_length": 0}, "bad_prompt"),
        ([5, 99], {}, "bad_prompt"),
        ([-1], {"prompt_length": 0}, "bad_prompt"),
        ([5] * 64, {}, "context_length_exceeded"),
        ([5], {"max_tokens": 0}, "context_length_exceeded"),
        ([5] * 50, {}, "out_of_cache"),
    ],
)
def test_sessions_that_cannot_be_served_are_refused(
    tokens: list[int], options: dict[str, int], code: str
) -> None:
    core = make_core(max_context=64, cache_rows=40)
    core.handle(open_session(1, tokens, **options))  # type: ignore[arg-type]
    (failure,) = core.take_failures()
    assert (failure.session, failure.code) == (1, code)
    assert failure.text
    assert core.num_sessions == 0
    assert core.take_failures() == []


def test_a_session_number_is_used_once() -> None:
    run = started()
    run.core.handle(open_session(1, PROMPT))
    assert [f.code for f in run.core.take_failures()] == ["session_in_use"]
    run.finish_all()
    assert run.tokens[1] == PROMPT + decode(PROMPT)


def test_law7_bounded_sessions_sources_vertices_and_steps() -> None:
    limits = EngineLimits(max_sessions=2, max_sources=2, max_live_vertices=6, max_queued_steps=2)
    run = Run(make_core(limits=limits))
    for session in (1, 2, 3):
        run.core.handle(open_session(session, PROMPT))
    assert [f.code for f in run.core.take_failures()] == ["too_many_sessions"]
    first = run.core.session(1)
    assert first is not None
    for source in (1, 2, 3):
        run.core.handle(vertices(1, source, len(PROMPT), [4, 5, 6, 7]))
    assert first.num_sources == 2
    run.core.handle(vertices(1, 1, len(PROMPT), [8, 9, 10], first_index=5))
    assert first.num_sources == 1
    for step_no in (1, 2):
        run.core.handle(batch([1], step_no=step_no))
    assert run.core.is_full
    with pytest.raises(ValueError, match="full"):
        run.core.handle(batch([1], step_no=3))
    assert run.core.num_queued == 2
    (done,) = run.core.step_next()
    assert getattr(done, "step_no", None) == 1


def test_law7_bounded_tree_indices() -> None:
    run = started()
    session = run.core.session(1)
    assert session is not None
    base = len(PROMPT) + 1
    wrong = next(t for t in range(2, 32) if t != decode(PROMPT)[1])
    run.step(batch([1], max_rows=0))
    most = 65_535  # the walk falls short, so none of these is kept
    for first_index in (1, 1 + most // 3, 1 + 2 * (most // 3)):
        count = most // 3
        tokens, parents = [wrong] * count, [0] * count
        run.core.handle(vertices(1, 3, base, tokens, parents=parents, first_index=first_index))
        assert session.num_sources == 1
        assert session.num_live(3) == 0
    run.core.handle(vertices(1, 3, base, [wrong], parents=[0], first_index=most + 1))
    assert session.num_sources == 0


# --- a full cache and a model that fails ---------------------------------------------------------


def test_a_full_cache_costs_trees_first() -> None:
    right = decode(PROMPT)
    run = started(cache_rows=len(PROMPT) + 3)
    run.core.handle(vertices(1, 3, len(PROMPT) + 1, right[1:9]))
    result = only(run.step(batch([1], sources=[3], max_rows=8)).results)
    assert (result.num_rows, result.token_ids) == (0, right[1:2])
    assert run.core.take_failures() == []


def test_a_full_cache_then_costs_the_youngest_session() -> None:
    run = started((1, 2), cache_rows=2 * len(PROMPT) + 6)
    while not (failures := run.core.take_failures()):
        run.step(batch([1, 2], max_rows=0))
    assert [(f.session, f.code) for f in failures] == [(2, "out_of_cache")]
    run.finish[2] = "failed"
    assert len(run.tokens[1]) > len(PROMPT) + 3
    num_before = len(run.tokens[1])
    run.step(batch([1, 2], max_rows=0))
    assert len(run.tokens[1]) == num_before + 1
    run.step(batch([1], max_rows=0))
    assert run.tokens[1] == (PROMPT + decode(PROMPT))[: num_before + 2]


def test_prompts_that_wait_count_as_taken() -> None:
    core = make_core(cache_rows=2 * len(PROMPT) - 1)
    core.handle(open_session(1, PROMPT))
    core.handle(open_session(2, PROMPT))
    assert [(f.session, f.code) for f in core.take_failures()] == [(2, "out_of_cache")]


def test_the_last_session_fails_too_when_nothing_fits() -> None:
    run = started(cache_rows=len(PROMPT))
    done = run.step(batch([1]))
    assert done.results == []
    assert [f.code for f in run.core.take_failures()] == ["out_of_cache"]


class FailingModel(ToyModel):
    """Cannot serve one session; optionally spoils its cache first."""

    bad: int = 0
    spoils: bool = False

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        if any(rows.sequence == self.bad for rows in batch):
            if self.spoils and len(batch) > 1:
                self.spoils = False
                super().choose(batch)
            raise ModelError("this session cannot be served")
        return super().choose(batch)


def test_a_model_error_costs_the_session_that_raises_it() -> None:
    model = FailingModel(PARAMS)
    run = Run(EngineCore(model, Clock()))
    for session in (1, 2, 3):
        run.open(open_session(session, PROMPT))
    run.step(batch([1, 2, 3]))
    model.bad = 2
    run.step(batch([1, 2, 3]))
    assert [(f.session, f.code) for f in run.core.take_failures()] == [(2, "model_error")]
    run.finish[2] = "failed"
    run.finish_all()
    for session in (1, 3):
        assert run.tokens[session] == PROMPT + decode(PROMPT)


class Nonsense(ToyModel):
    """Chooses no token in the second step of sequence 1, as a model whose logits are NaN would."""

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        choices = super().choose(batch)
        for rows, chosen in zip(batch, choices, strict=True):
            if rows.sequence == 1 and rows.positions[0] > 0:
                chosen[:] = self.info.vocab_size
        return choices


def test_logits_that_are_no_numbers_cost_the_session_and_not_the_engine() -> None:
    core = EngineCore(Nonsense(ToyParams(eos_bias=-100.0)), Clock())
    for number in (1, 2):
        core.handle(open_session(number, PROMPT, max_tokens=4))
    core.step(batch([1, 2]))
    done = core.step(batch([1, 2]))
    assert [result.session for result in done.results] == [2]
    assert [(failed.session, failed.code) for failed in core.take_failures()] == [
        (1, "model_error")
    ]
    assert [result.session for result in core.step(batch([1, 2])).results] == [2]


def test_a_failed_step_that_wrote_rows_is_not_built_upon() -> None:
    model = FailingModel(PARAMS)
    run = Run(EngineCore(model, Clock()))
    for session in (1, 2, 3):
        run.open(open_session(session, PROMPT))
    run.step(batch([1, 2, 3]))
    right = decode(PROMPT)
    run.core.handle(vertices(1, 5, len(PROMPT) + 1, right[1:4]))  # 1 has a tail, 3 a plain row
    model.bad, model.spoils = 2, True
    run.step(batch([1, 2, 3], sources=[5], hit_rates=[0, 0, 0], row_price=0.01))
    assert {f.session for f in run.core.take_failures()} == {2, 3}
    run.finish[2] = run.finish[3] = "failed"
    run.finish_all()
    assert run.tokens[1] == PROMPT + right


def test_ready_says_what_the_model_is() -> None:
    ready = make_core().ready(StepPrice(0.02, 0.001))
    assert (ready.model, ready.vocab_size, ready.eos_token_ids) == ("toy", 32, [EOS])
    assert (ready.step_time_s, ready.row_time_s) == (0.02, 0.001)
    assert np.isfinite(ready.max_context)
