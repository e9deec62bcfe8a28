"""The engine's own drafting: the output law, when levels come, the draft model's cache."""

from collections.abc import Sequence
from itertools import count
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from coordinator.engine import own_tree
from coordinator.engine.core import EngineCore
from coordinator.engine.messages import CloseSession, DropSource, LevelTerms, SourceSeen
from coordinator.engine.own_draft import MAX_ERRORS
from coordinator.engine.own_plan import MAX_CHAIN
from coordinator.engine.settings import EngineLimits
from specedge_p2p.lm.ports import Children, ModelError, Rows, SamplingParams
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from specedge_p2p.noise import noise_key, seed_bytes
from tests.support.engine import GREEDY, Run, TreeMaker, batch, open_session, vertices

TARGET = ToyParams(vocab_size=32)
SKILLED = ToyParams(vocab_size=32, perturbation=0.4)
WARM = SamplingParams(temperature=0.8, top_k=12)
PROMPT = [5, 9, 7, 5, 9, 7, 3]
NO_NGRAM = [0.0, 0.0, 0.0]

CHEAP = LevelTerms(level_time_s=0.001, level_row_time_s=0.0, row_time_s=0.0, tokens_per_s=10.0)
DEAR = LevelTerms(level_time_s=1.0, level_row_time_s=0.0, row_time_s=0.0, tokens_per_s=100.0)
FIXED = LevelTerms(1.0, 0.0, 0.0, 1e9, max_levels=3, width=2, is_fixed=True)


class Draft(ToyModel):
    """Keeps the rows of every forward; fails when told to, with its caches spoiled."""

    def __init__(
        self, params: ToyParams = SKILLED, max_context: int = 4096, cache_rows: int = 1 << 20
    ) -> None:
        super().__init__(params, name="draft", max_context=max_context, cache_rows=cache_rows)
        self.forwards: list[list[Rows]] = []
        self.num_failures = 0

    def expand(self, rows: Sequence[Rows], branch_width: int) -> list[Children]:
        if self.num_failures:
            self.num_failures -= 1
            super().expand(rows[:1], branch_width)
            raise ModelError("no more today")
        children = super().expand(rows, branch_width)
        self.forwards.append(list(rows))
        return children


def make_run(draft: ToyModel | None, limits: EngineLimits | None = None) -> Run:
    times = count()
    return Run(EngineCore(ToyModel(TARGET), lambda: next(times) / 1000, limits, draft))


def decode(
    prompt: Sequence[int], max_tokens: int = 16, sampling: SamplingParams = GREEDY, seed: int = 0
) -> list[int]:
    key = noise_key(seed_bytes(seed), list(prompt))
    return toy_decode(TARGET, prompt, sampling, key, max_tokens)


def started(draft: ToyModel, max_tokens: int = 64, limits: EngineLimits | None = None) -> Run:
    run = make_run(draft, limits)
    run.open(open_session(1, PROMPT, max_tokens=max_tokens))
    run.step(batch([1]))
    return run


# --- the output law ------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32),
    sampling=st.sampled_from([GREEDY, WARM]),
    perturbation=st.sampled_from([0.0, 0.5, 2.0]),
    cache_rows=st.sampled_from([20, 60, 1 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_law1_output_is_the_references_whatever_the_engine_drafts(
    seed: int, sampling: SamplingParams, perturbation: float, cache_rows: int
) -> None:
    """Random levels, caps, nodes, losses, failing drafts, full draft caches, and a crash."""
    random = Random(seed)
    params = ToyParams(
        vocab_size=random.choice([28, 32, 40]),
        perturbation=perturbation,
    )
    draft = Draft(params, random.choice([20, 4096]), cache_rows)
    limits = EngineLimits(max_draft_prefill_rows=random.choice([1, 30, 512]))
    run = make_run(draft, limits)
    opened, expected = {}, {}
    for session in range(1, random.randint(2, 5)):
        length = random.choice([1, 7, MAX_CHAIN + 20])
        prompt = [random.randrange(2, 32) for _ in range(length)]
        opened[session] = open_session(
            session, prompt, max_tokens=random.randint(1, 40), sampling=sampling, seed=session
        )
        run.open(opened[session])
        expected[session] = prompt + decode(prompt, opened[session].max_tokens, sampling, session)
    makers = {number: TreeMaker(number, 1, random) for number in opened}
    for _ in range(60):
        act(random, run, draft, makers, expected)
    run.finish_all(sources=[1], levels=CHEAP)
    for session, tokens in expected.items():
        assert run.tokens[session] == tokens
    if params == TARGET and sampling == GREEDY:  # its rows are right, whatever happened to them
        own = [
            s for results in run.results.values() for r in results for s in r.seen if not s.source
        ]
        assert all(seen.is_hit for seen in own)


def act(
    random: Random,
    run: Run,
    draft: Draft,
    makers: dict[int, TreeMaker],
    expected: dict[int, list[int]],
) -> None:
    """One random event: mostly a step, else a node's tree, a lost node or a draft that fails."""
    session = random.choice(sorted(makers))
    event = random.choice(["step"] * 5 + ["tree", "right", "drop", "fail"])
    base = random.randint(1, len(run.tokens[session]))
    if event == "step":
        numbers = random.sample(sorted(makers), random.randint(1, len(makers)))
        run.step(
            batch(
                numbers,
                max_rows=random.choice([0, 1, 4, 32]),
                sources=[1],
                row_price=random.choice([0.0, 0.02, 0.3]),
                hit_rates=random.choice([NO_NGRAM, [0.6, 0.5, 0.4]]),
                prefill_tokens=random.choice([5, 1000]),
                max_sessions=random.choice([0, 1, 2]),
                must=random.sample(numbers, random.randint(0, 1)),
                levels=random.choice([None, CHEAP, CHEAP, DEAR, FIXED]),
            )
        )
    elif event == "drop":
        run.core.handle(DropSource(session, 1))
    elif event == "fail":
        draft.num_failures = random.choice([1, 1, MAX_ERRORS])
    else:
        makers[session].restart(base)
        right = makers[session].chain(expected[session][base : base + 8])
        wrong = makers[session].random_vertices(20, TARGET.vocab_size)
        if event == "right":
            run.core.handle(right)
        run.core.handle(wrong)


def test_law1_output_survives_a_crash_of_the_engine_with_its_draft() -> None:
    run = started(Draft(), max_tokens=40)
    for _ in range(4):
        run.step(batch([1], levels=CHEAP))
    tokens = run.tokens[1]
    again = make_run(Draft())
    again.open(open_session(1, tokens, prompt_length=len(PROMPT), max_tokens=40))
    again.finish_all(levels=CHEAP)
    assert again.tokens[1] == PROMPT + decode(PROMPT, 40)


# --- when levels come, and what they bring -------------------------------------------------------


@pytest.mark.parametrize("max_marks", [3, own_tree.MAX_MARKS])
def test_a_draft_that_is_always_right_fills_every_step(
    monkeypatch: pytest.MonkeyPatch, max_marks: int
) -> None:
    monkeypatch.setattr(own_tree, "MAX_MARKS", max_marks)
    draft = Draft(TARGET)
    run = started(draft, max_tokens=64)
    num_steps = run.finish_all(levels=CHEAP, hit_rates=NO_NGRAM, row_price=0.01)
    # three levels and the bonus token
    assert num_steps <= 17
    assert run.tokens[1] == PROMPT + decode(PROMPT, 64)
    sources = [source for result in run.results[1] for source in result.sources]
    assert sum(source.own for source in sources) >= 44
    assert all((source.source, source.second, source.ngram) == (0, 0, False) for source in sources)


def test_levels_come_when_they_pay_and_only_then() -> None:
    draft = Draft()
    run = started(draft)
    assert run.step(batch([1], levels=DEAR)).num_levels == 0
    assert run.step(batch([1], levels=None)).num_levels == 0
    assert draft.forwards == []
    done = run.step(batch([1], levels=CHEAP, hit_rates=NO_NGRAM))
    assert 1 <= done.num_levels <= CHEAP.max_levels
    assert done.num_level_rows == sum(len(r.token_ids) for f in draft.forwards for r in f)
    assert 0 < done.level_s < done.ended_s - done.started_s
    assert 0.3 < done.level_mass < 1 + done.num_levels
    result = done.results[0]
    assert result.num_own_rows == result.num_rows > 0
    assert result.num_source_rows == 0


def test_levels_that_brought_little_lately_do_not_pay() -> None:
    unworthy = replace(CHEAP, worth=0.0)
    run = started(Draft())
    assert run.step(batch([1], levels=unworthy, hit_rates=NO_NGRAM)).num_levels == 0


def test_what_nodes_covered_is_not_drafted_again() -> None:
    """Each level is worth what nobody covered: certain guesses of a node leave nothing."""
    right = decode(PROMPT, 64)
    terms = LevelTerms(0.01, 0.0, 0.0, tokens_per_s=20.0, max_levels=1)
    uncovered = started(Draft())
    assert uncovered.step(batch([1], levels=terms, hit_rates=NO_NGRAM)).num_levels == 1
    covered = started(Draft())
    base = len(PROMPT) + 1
    covered.core.handle(vertices(1, 3, base, right[1:25], log_probs=[0.0] * 24))
    node = batch([1], levels=terms, sources=[3], max_rows=32, hit_rates=NO_NGRAM)
    assert covered.step(node).num_levels == 1  # below the last of its guesses
    covered = started(Draft())
    covered.core.handle(vertices(1, 3, base, right[1:25], log_probs=[0.0] * 24))
    node = batch([1], levels=terms, sources=[3], max_rows=8, hit_rates=NO_NGRAM)
    assert covered.step(node).num_levels == 0


def test_levels_go_on_below_what_a_node_guessed() -> None:
    """The draft model reads the node's rows, has their successors, and claims none of them."""
    right = decode(PROMPT, 64)
    draft = Draft(ToyParams(vocab_size=32, perturbation=3.0))  # would never guess so itself
    run = started(draft)
    run.core.handle(vertices(1, 3, len(PROMPT) + 1, right[1:6], log_probs=[0.0] * 5))
    done = run.step(batch([1], levels=CHEAP, sources=[3], max_rows=32, hit_rates=NO_NGRAM))
    (result,) = done.results
    assert result.token_ids[:5] == right[1:6]
    assert [source.source for source in result.sources[:5]] == [3] * 5
    deepest = max(int(rows.positions.max()) for rows in draft.forwards[0])
    assert deepest >= len(PROMPT) + 5
    assert result.num_source_rows == 5
    own = [seen for seen in result.seen if seen.source == 0]
    is_own = {s.own for s, token in zip(result.sources, result.token_ids, strict=True)}
    assert len(own) == 1
    assert own[0].is_hit == result.sources[0].own
    assert False in is_own


def test_a_fixed_tree_grows_whatever_it_brings() -> None:
    draft = Draft()
    run = started(draft)
    done = run.step(batch([1], levels=FIXED, max_rows=32, hit_rates=NO_NGRAM))
    assert done.num_levels == 3
    widths = [sum(rows.num_outputs for rows in forward) for forward in draft.forwards]
    assert widths == [1, 2, 2]
    assert run.results[1][-1].num_rows > 5


def test_guesses_and_rows_outlive_a_step() -> None:
    """After a hit the accepted rows are in the draft's prefix: a step reads few tokens anew."""
    draft = Draft(TARGET)
    run = started(draft)
    run.step(batch([1], levels=CHEAP, hit_rates=NO_NGRAM))
    draft.forwards.clear()
    done = run.step(batch([1], levels=CHEAP, hit_rates=NO_NGRAM))
    assert len(done.results[0].token_ids) >= 3
    first = draft.forwards[0][0]
    assert first.positions[0] >= len(PROMPT) + 2  # the prompt and the accepted tokens have rows
    assert draft.num_prefix_rows(1) >= len(PROMPT) + 5
    assert draft.num_tail_rows(1) == 0


def test_own_guesses_are_scored_like_a_nodes() -> None:
    run = started(Draft(TARGET))
    (result,) = run.step(batch([1], levels=CHEAP, hit_rates=NO_NGRAM)).results
    (seen,) = result.seen
    assert seen.source == 0
    assert seen.is_hit
    assert 0.5 < seen.predicted <= 1.0


def test_every_full_tree_is_scored_taken_or_not() -> None:
    run = started(Draft())
    right = decode(PROMPT)
    base = len(PROMPT) + 1
    run.core.handle(vertices(1, 3, base, right[1:3], log_probs=[-0.5, -0.5]))
    run.core.handle(vertices(1, 4, base, [(right[1] + 1) % 32], log_probs=[-1.0]))
    run.core.handle(vertices(1, 5, base - 1, [(right[0] + 1) % 32]))  # not on the way
    (result,) = run.step(batch([1], max_rows=0, hit_rates=NO_NGRAM)).results
    assert [(seen.source, seen.is_hit) for seen in result.seen] == [(3, True), (4, False)]
    assert [seen.predicted for seen in result.seen] == [
        pytest.approx(np.exp(-0.5)),
        pytest.approx(np.exp(-1.0)),
    ]
    (result,) = run.step(batch([1], max_rows=0, hit_rates=NO_NGRAM)).results
    assert [(seen.source, seen.is_hit) for seen in result.seen] == [(3, True)]


def test_the_first_token_scores_those_who_had_read_the_prompt() -> None:
    run = make_run(None)
    run.open(open_session(1, PROMPT))
    run.core.handle(vertices(1, 3, len(PROMPT), decode(PROMPT)[:1], log_probs=[0.0]))
    (result,) = run.step(batch([1])).results
    assert result.seen == [SourceSeen(3, 1.0, True)]


# --- the draft model's cache ---------------------------------------------------------------------


def test_a_long_prompt_is_read_in_chunks() -> None:
    prompt = [5 + i % 20 for i in range(3 * MAX_CHAIN)]
    draft = Draft(TARGET)
    run = make_run(draft, EngineLimits(max_draft_prefill_rows=MAX_CHAIN))
    run.open(open_session(1, prompt, max_tokens=40))
    run.step(batch([1]))
    num_read = []
    for _ in range(3):
        draft.forwards.clear()
        run.step(batch([1], levels=CHEAP, hit_rates=NO_NGRAM))
        num_read.append([len(rows.token_ids) for forward in draft.forwards for rows in forward])
    assert num_read[0] == [MAX_CHAIN]
    assert num_read[1] == [MAX_CHAIN]
    assert len(num_read[2]) == CHEAP.max_levels  # the rest, with a tree
    run.finish_all(levels=CHEAP)
    assert run.tokens[1] == prompt + decode(prompt, 40)


def test_the_last_chunk_brings_the_first_children() -> None:
    prompt = [5 + i % 20 for i in range(3 * MAX_CHAIN)]
    draft = Draft(TARGET)
    run = make_run(draft)
    run.open(open_session(1, prompt, max_tokens=40))
    run.step(batch([1]))
    done = run.step(batch([1], levels=CHEAP, hit_rates=NO_NGRAM))
    assert draft.forwards[0][0].visible is None
    assert done.results[0].num_own_rows > 0


def test_a_full_draft_cache_costs_guesses_of_the_youngest_only() -> None:
    draft = Draft(TARGET, cache_rows=len(PROMPT) + 30)
    run = make_run(draft)
    for session in (1, 2):
        run.open(open_session(session, PROMPT, max_tokens=12 * session))
    run.step(batch([1, 2]))
    for _ in range(2):
        run.step(batch([1, 2], levels=CHEAP, hit_rates=NO_NGRAM))
    assert run.core.take_failures() == []
    num_own = {n: sum(r.num_own_rows for r in run.results[n]) for n in (1, 2)}
    assert num_own[1] > 0
    run.finish_all(levels=CHEAP, hit_rates=NO_NGRAM)
    for session in (1, 2):
        assert run.tokens[session] == PROMPT + decode(PROMPT, 12 * session)
    assert sum(r.num_own_rows for r in run.results[2]) > 0  # when the first had gone
    assert draft.num_free_rows == len(PROMPT) + 30


def test_the_youngest_gives_way_though_a_capped_step_left_it_out() -> None:
    """The plan holds the oldest alone, and the rows in its way belong to the youngest."""
    draft = Draft(TARGET, cache_rows=40)
    run = make_run(draft)
    for session in (1, 2):
        run.open(open_session(session, PROMPT, max_tokens=24))
    run.step(batch([1, 2]))
    for _ in range(4):
        (young,) = run.step(batch([2], levels=CHEAP, hit_rates=NO_NGRAM)).results
        assert young.num_own_rows > 0
    for _ in range(3):
        (old,) = run.step(batch([1], levels=CHEAP, hit_rates=NO_NGRAM)).results
        assert old.num_own_rows > 0
    assert draft.num_prefix_rows(2) == 0
    (young,) = run.step(batch([2], levels=CHEAP, hit_rates=NO_NGRAM)).results
    assert young.num_own_rows == 0
    run.finish_all(levels=CHEAP, hit_rates=NO_NGRAM)
    for session in (1, 2):
        assert run.tokens[session] == PROMPT + decode(PROMPT, 24)
    assert draft.num_free_rows == 40


def test_a_failing_draft_model_is_given_up() -> None:
    draft = Draft()
    run = started(draft)
    draft.num_failures = 1
    assert run.step(batch([1], levels=CHEAP)).num_levels == 0
    assert run.step(batch([1], levels=CHEAP)).num_levels > 0
    draft.num_failures = MAX_ERRORS
    for _ in range(MAX_ERRORS + 2):
        assert run.step(batch([1], levels=CHEAP)).num_levels == 0
    assert draft.num_failures == 0
    run.finish_all(levels=CHEAP)
    assert run.tokens[1] == PROMPT + decode(PROMPT, 64)


def test_sessions_that_the_draft_model_cannot_read_go_without() -> None:
    small = Draft(ToyParams(vocab_size=8))
    run = started(small, max_tokens=16)  # the prompt holds token 9
    run.finish_all(levels=CHEAP)
    assert small.forwards == []
    short = Draft(max_context=len(PROMPT) + 3)
    run = started(short, max_tokens=16)
    run.finish_all(levels=CHEAP)
    assert run.tokens[1] == PROMPT + decode(PROMPT)
    assert max(int(r.positions.max()) for f in short.forwards for r in f) == len(PROMPT) + 2


def test_closed_and_finished_sessions_leave_no_rows() -> None:
    draft = Draft(cache_rows=1000)
    run = started(draft, max_tokens=8)
    run.open(open_session(2, PROMPT))
    run.step(batch([2]))
    run.step(batch([1, 2], levels=CHEAP))
    assert draft.num_free_rows < 1000
    run.core.handle(CloseSession(2))
    run.finish[2] = "closed"
    run.finish_all(levels=CHEAP)
    assert draft.num_free_rows == 1000


# --- capped steps --------------------------------------------------------------------------------


def test_a_capped_step_takes_who_must_then_who_has_rows_in_order() -> None:
    run = make_run(None)
    numbers = [1, 2, 3, 4, 5]
    for number in numbers:
        run.open(open_session(number, PROMPT))
    run.step(batch(numbers))
    right = decode(PROMPT)
    for number in (3, 5):
        run.core.handle(vertices(number, 7, len(PROMPT) + 1, right[1:3]))

    def served(max_sessions: int, order: Sequence[int], must: Sequence[int] = ()) -> list[int]:
        step = batch(order, max_sessions=max_sessions, must=must, sources=[7], hit_rates=NO_NGRAM)
        return [result.session for result in run.step(step).results]

    assert served(2, [1, 2, 4, 5, 3], must=[4]) == [4, 5]
    assert served(3, [1, 2, 4, 5, 3]) == [3, 1, 2]
    assert served(0, [2, 1]) == [2, 1]


def test_in_a_capped_step_the_others_take_turns_whatever_the_plan_knew() -> None:
    run = make_run(None)
    for number in (1, 2, 3):
        run.open(open_session(number, PROMPT))
    run.step(batch([1, 2, 3]))
    served = []
    for step_no in range(10, 15):
        step = replace(batch([1, 2, 3], max_sessions=1, hit_rates=NO_NGRAM), step_no=step_no)
        served += [result.session for result in run.step(step).results]
    assert served == [1, 2, 3, 1, 2]


def test_prompts_are_not_capped() -> None:
    run = make_run(None)
    for number in (1, 2, 3):
        run.open(open_session(number, PROMPT))
    assert len(run.step(batch([1, 2, 3], max_sessions=1)).results) == 3


def test_a_step_counts_prompt_and_cached_rows() -> None:
    run = make_run(None)
    run.open(open_session(1, PROMPT))
    run.open(open_session(2, PROMPT[:4]))
    run.step(batch([1]))
    done = run.step(batch([1, 2], max_rows=0))
    assert (done.num_forward_rows, done.num_prefill_rows) == (5, 4)
    assert done.num_context_rows == len(PROMPT)
