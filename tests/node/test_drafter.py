"""The drafter over the toy model: what it guesses, what it caches, what it gives up."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.drafter import MAX_FAILURES, Drafter, DrafterSettings, DraftRequest
from specedge_p2p.lm.ports import (
    MAX_TAIL_SLOTS,
    Children,
    ModelError,
    OutOfMemory,
    Rows,
    SamplingParams,
)
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from specedge_p2p.noise import noise_key
from specedge_p2p.tree.growth import Gain, GrowthSettings
from specedge_p2p.wire.messages import GrowthWishes

GREEDY = SamplingParams(temperature=0)
TARGET = ToyParams(eos_bias=-60.0)
DRAFT = ToyParams(eos_bias=-60.0, perturbation=0.5)
PROMPT = [2, 3, 4, 5, 6, 7]
KEY = noise_key(b"drafter", PROMPT)


def request(
    prompt: list[int] = PROMPT,
    sampling: SamplingParams = GREEDY,
    max_position: int = 4096,
    vocab_size: int = 32,
) -> DraftRequest:
    return DraftRequest(prompt, sampling, KEY, max_position, vocab_size)


class Mirror:
    """What the other side knows of one session's tree, kept in the plainest way."""

    def __init__(self) -> None:
        self.tree_no = 0
        self.paths: dict[int, tuple[int, ...]] = {}
        self.base = 0

    def take(self, gain: Gain | None) -> None:
        if gain is None:
            return
        if gain.tree_no != self.tree_no:
            assert gain.tree_no == self.tree_no + 1
            assert gain.first_index == 1
            self.tree_no, self.base, self.paths = gain.tree_no, gain.base_position, {0: ()}
        candidates = gain.candidates
        for i in range(len(candidates)):
            parent = self.paths[int(candidates.parents[i])]
            self.paths[gain.first_index + i] = (*parent, int(candidates.token_ids[i]))

    def accepted(self, tokens: list[int], num_committed: int, truth: list[int]) -> int:
        """How many of the true tokens after the committed ones some path holds."""
        known = tuple(tokens[self.base : num_committed])
        paths = set(self.paths.values())
        best = 0
        while best < len(truth) and (*known, *truth[: best + 1]) in paths:
            best += 1
        return best


def speculate(
    draft: ToyModel, sampling: SamplingParams, num_levels: int = 4, num_tokens: int = 120
) -> float:
    """Tokens per round of a target that judges after every `num_levels` levels."""
    truth = toy_decode(TARGET, PROMPT, sampling, KEY, num_tokens)
    drafter, mirror = Drafter(draft), Mirror()
    drafter.open(1, request(sampling=sampling))
    tokens, done, rounds = list(PROMPT), 0, 0
    while done < len(truth):
        for _ in range(num_levels):
            drafter.level()
            mirror.take(drafter.gains(1, 256))
        num = mirror.accepted(tokens, len(tokens), truth[done:])
        new = truth[done : done + num + 1]
        drafter.commit(1, new)
        tokens += new
        done += len(new)
        rounds += 1
    return len(truth) / rounds


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_like_minded_draft_is_accepted_and_a_stranger_is_not(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature)
    friend = speculate(ToyModel(DRAFT), sampling)
    stranger = speculate(ToyModel(ToyParams(seed=9, eos_bias=-60.0)), sampling)
    assert friend > 2.0
    assert stranger < 1.6
    assert friend > 1.5 * stranger


def test_a_perfect_draft_is_accepted_whole() -> None:
    assert speculate(ToyModel(TARGET), GREEDY, num_levels=4) > 4.0


class Recorder(ToyModel):
    """Remembers what every expansion gave, by the whole token path that led to it."""

    def __init__(self, params: ToyParams, **options: int) -> None:
        super().__init__(params, **options)  # type: ignore[arg-type]
        self.log: list[tuple[Rows, Children]] = []

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        results = super().expand(batch, branch_width)
        self.log += zip(batch, results, strict=True)
        return results


def fresh_children(params: ToyParams, tokens: list[int], sampling: SamplingParams) -> Children:
    model = ToyModel(params)
    model.add_sequence(1, sampling, KEY)
    rows = Rows(1, np.array(tokens, np.int32), np.arange(len(tokens), dtype=np.int32), None, 1)
    return model.expand([rows], 8)[0]


@settings(deadline=None)
@given(data=st.data(), temperature=st.sampled_from([0.0, 0.7]))
def test_what_the_cache_says_is_what_a_fresh_model_says(
    data: st.DataObject, temperature: float
) -> None:
    sampling = SamplingParams(temperature=temperature)
    model = Recorder(DRAFT)
    growth = GrowthSettings(beam_width=data.draw(st.sampled_from([1, 3, 16])))
    drafter = Drafter(model, DrafterSettings(growth, prefill_rows=4))
    drafter.open(1, request(sampling=sampling))
    tokens, mirror = list(PROMPT), Mirror()
    for _ in range(data.draw(st.integers(2, 8))):
        for _ in range(data.draw(st.integers(0, 4))):
            drafter.level()
            mirror.take(drafter.gains(1, 256))
        known = tokens[mirror.base :]
        live = [p for p in mirror.paths.values() if list(p[: len(known)]) == known]
        is_guess = data.draw(st.integers(0, 1)) if live else 0
        guessed = list(data.draw(st.sampled_from(live)))[len(known) :] if is_guess else []
        strange = data.draw(st.lists(st.integers(2, 31), max_size=2))
        drafter.commit(1, guessed + strange)
        tokens += guessed + strange
        assert drafter.num_tokens(1) == len(tokens)
    # Whatever happened to the cache, an expansion now equals one of a model that starts anew.
    model.log.clear()
    for _ in range(40):
        done = drafter.level()
        if not done.num_rows or done.num_rows > done.num_prefill_rows:
            break
    drafter.level()
    gain = drafter.gains(1, 256)
    mirror.take(gain)
    committed = tuple(tokens[mirror.base :])
    expected = {len(tokens): fresh_children(DRAFT, tokens, sampling)}
    root = dict(
        zip(
            expected[len(tokens)].token_ids[0].tolist(),
            expected[len(tokens)].log_probs[0].tolist(),
            strict=True,
        )
    )
    below = {
        p[len(committed)]
        for p in mirror.paths.values()
        if p[: len(committed)] == committed and len(p) == len(committed) + 1
    }
    likely = {t for t, log_prob in root.items() if log_prob > np.log(0.004)}
    assert likely <= below <= set(root)
    for rows, children in model.log:
        if rows.visible is not None:
            check_against_fresh(tokens, rows, children, sampling, model)
            break


def check_against_fresh(
    tokens: list[int], rows: Rows, children: Children, sampling: SamplingParams, model: Recorder
) -> None:
    """The rows that hang directly below the root can be recomputed from tokens alone."""
    for i, (token, position) in enumerate(zip(rows.token_ids, rows.positions, strict=True)):
        if position == len(tokens):
            fresh = fresh_children(DRAFT, [*tokens, int(token)], sampling)
            np.testing.assert_array_equal(children.token_ids[i], fresh.token_ids[0])
            np.testing.assert_allclose(children.log_probs[i], fresh.log_probs[0], rtol=1e-5)


def test_a_hit_writes_no_row_twice() -> None:
    model = Recorder(TARGET)
    drafter = Drafter(model)
    drafter.open(1, request())
    truth = toy_decode(TARGET, PROMPT, GREEDY, KEY, 8)
    for _ in range(5):
        drafter.level()
    rows_before = model.num_prefix_rows(1) + model.num_tail_rows(1)
    assert drafter.commit(1, truth[:3])
    assert model.num_prefix_rows(1) == len(PROMPT) + 3
    assert 0 < model.num_tail_rows(1) < rows_before - len(PROMPT)
    model.log.clear()
    drafter.level()
    assert all(rows.visible is not None for rows, _ in model.log)  # growth only, no prefill


def test_tokens_that_were_not_guessed_are_caught_up() -> None:
    model = Recorder(DRAFT)
    drafter = Drafter(model)
    drafter.open(1, request())
    for _ in range(3):
        drafter.level()
    assert not drafter.commit(1, [30, 31, 30, 31, 30, 31, 30, 31, 29])
    done = drafter.level()
    assert done.num_prefill_rows == 9
    assert model.num_prefix_rows(1) == len(PROMPT) + 9
    assert drafter.level().num_prefill_rows == 0


def test_prompts_are_read_in_chunks_while_others_grow() -> None:
    model = Recorder(DRAFT)
    drafter = Drafter(model, DrafterSettings(prefill_rows=10))
    drafter.open(1, request())
    drafter.level()
    drafter.open(2, request([2 + i % 29 for i in range(35)]))
    for _ in range(4):
        done = drafter.level()
        assert done.num_sessions == 2
        assert done.num_prefill_rows <= 10
    assert model.num_prefix_rows(2) == 35


def widths(drafter: Drafter, model: Recorder, num_levels: int = 6) -> int:
    """The most rows that one session had in a level."""
    model.log.clear()
    for _ in range(num_levels):
        drafter.level()
    return max(len(rows.token_ids) for rows, _ in model.log if rows.visible is not None)


@pytest.mark.parametrize(("num_sessions", "beam"), [(1, 16), (3, 16), (4, 8), (11, 8), (12, 4)])
def test_the_beam_narrows_with_the_number_of_sessions(num_sessions: int, beam: int) -> None:
    model = Recorder(DRAFT)
    drafter = Drafter(model)
    for number in range(num_sessions):
        drafter.open(number, request())
    assert widths(drafter, model) == beam


def test_the_coordinator_may_wish_for_another_beam() -> None:
    model = Recorder(DRAFT)
    drafter = Drafter(model)
    wished = DraftRequest(PROMPT, GREEDY, KEY, 4096, 32, GrowthWishes(beam_width=3))
    drafter.open(1, wished)
    assert widths(drafter, model) == 3
    drafter.commit(1, [30])
    drafter.tune(1, GrowthWishes(beam_width=5))
    assert widths(drafter, model) == 5


def test_levels_are_timed_and_prompts_are_not() -> None:
    now = iter(range(1000))
    drafter = Drafter(ToyModel(DRAFT), clock=lambda: float(next(now)))
    drafter.open(1, request())
    drafter.level()
    assert drafter.level_time_s(1) == 0.0
    drafter.level()
    assert drafter.level_time_s(1) > 0.0


def test_growth_that_is_not_worth_a_level_rests_until_the_next_verdict() -> None:
    rows = {}
    for has_early_stop in (True, False):
        model = Recorder(DRAFT)
        drafter = Drafter(model, DrafterSettings(has_early_stop=has_early_stop))
        drafter.open(1, request())
        rows[has_early_stop] = 0
        while done := drafter.level().num_rows:
            rows[has_early_stop] += done
        drafter.commit(1, [30])
        assert drafter.level().num_rows
    assert rows[True] < rows[False]


def test_nothing_stands_at_or_beyond_the_last_position() -> None:
    drafter = Drafter(ToyModel(DRAFT))
    drafter.open(1, request(max_position=len(PROMPT) + 2))
    mirror = Mirror()
    for _ in range(8):
        drafter.level()
        mirror.take(drafter.gains(1, 256))
    assert max(len(path) for path in mirror.paths.values()) == 2
    assert drafter.level().num_rows == 0
    drafter.commit(1, [5, 6])  # the end: no more to guess, not even a row for the root
    assert drafter.level().num_rows == 0


def test_a_session_that_outgrows_the_draft_context_is_shed() -> None:
    drafter = Drafter(ToyModel(DRAFT, max_context=16))
    drafter.open(1, request())
    drafter.level()
    drafter.commit(1, [9] * 11)
    (shed,) = drafter.level().shed
    assert shed.session_no == 1
    assert "context" in shed.reason
    assert drafter.session_nos == ()


def test_law7_bounded_growth_stops_when_there_is_nothing_worth_growing() -> None:
    model = ToyModel(DRAFT)
    drafter = Drafter(model)
    drafter.open(1, request())
    levels = 0
    while drafter.level().num_rows:
        levels += 1
        assert levels < 1000
    assert model.num_tail_rows(1) <= MAX_TAIL_SLOTS
    assert drafter.level().num_rows == 0


@given(cache_rows=st.integers(8, 200), num_sessions=st.integers(1, 6))
@settings(deadline=None)
def test_law7_bounded_a_full_cache_pauses_or_sheds_and_never_fails(
    cache_rows: int, num_sessions: int
) -> None:
    model = ToyModel(DRAFT, cache_rows=cache_rows)
    drafter = Drafter(model)
    for number in range(num_sessions):
        drafter.open(number, request())
    for _ in range(6):
        for _ in range(4):
            drafter.level()
        for number in drafter.session_nos:
            drafter.commit(number, [7, 8])
    assert model.num_free_rows >= 0
    if cache_rows >= 40 * num_sessions:
        assert len(drafter.session_nos) == num_sessions


class Failing(ToyModel):
    error: ModelError | None = None

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        if self.error is not None:
            raise self.error
        return super().expand(batch, branch_width)


@pytest.mark.parametrize("error", [ModelError("failed"), OutOfMemory("no memory is left")])
def test_a_model_is_broken_where_it_fails_again_and_only_then(error: ModelError) -> None:
    model = Failing(DRAFT)
    drafter = Drafter(model)
    model.error = error
    for number in range(MAX_FAILURES + 1):
        drafter.open(number, request())
        done = drafter.level()
        assert [shed.session_no for shed in done.shed] == [number]
        assert done.is_broken == (number >= MAX_FAILURES - 1)
    model.error = None
    assert not drafter.level().is_broken  # nothing to do is no failure
    drafter.open(9, request())
    assert drafter.level().num_rows == len(PROMPT)
    model.error = ModelError("failed")
    assert not drafter.level().is_broken  # the first one since it ran


def test_tokens_that_the_target_does_not_know_are_never_sent() -> None:
    drafter = Drafter(ToyModel(DRAFT))
    drafter.open(1, request(vocab_size=12))
    for _ in range(5):
        drafter.level()
    gain = drafter.gains(1, 256)
    assert gain is not None
    assert gain.candidates.token_ids.max() < 12


def test_nothing_grows_below_an_end_of_sequence() -> None:
    model = Recorder(ToyParams(eos_bias=3.0))
    drafter = Drafter(model)
    drafter.open(1, request())
    for _ in range(6):
        drafter.level()
    expanded = {int(t) for rows, _ in model.log if rows.visible is not None for t in rows.token_ids}
    assert expanded
    assert not expanded & set(model.info.eos_token_ids)


def test_a_new_link_numbers_trees_from_one_and_keeps_the_cache() -> None:
    model = Recorder(DRAFT)
    drafter = Drafter(model)
    drafter.open(1, request())
    for _ in range(3):
        drafter.level()
        drafter.gains(1, 256)
    drafter.commit(1, [30])  # a miss: tree 2
    drafter.level()
    gain = drafter.gains(1, 256)
    assert gain is not None
    assert gain.tree_no == 2
    num_rows = model.num_prefix_rows(1)
    drafter.resume(1, GrowthWishes())
    again = drafter.gains(1, 256)
    assert again is not None
    assert (again.tree_no, again.first_index) == (1, 1)
    assert len(again.candidates) == len(gain.candidates)
    assert model.num_prefix_rows(1) == num_rows


def test_a_number_in_use_or_an_empty_prompt_is_refused() -> None:
    drafter = Drafter(ToyModel(DRAFT))
    drafter.open(1, request())
    with pytest.raises(ValueError, match="in use"):
        drafter.open(1, request())
    with pytest.raises(ValueError, match="no tokens"):
        drafter.open(2, request([]))
    drafter.close(1)
    drafter.close(1)
    assert drafter.session_nos == ()


def test_a_session_with_tokens_that_the_draft_model_lacks_is_given_up() -> None:
    """Vocabularies of one family may differ in their padding: 29 is no token of this draft."""
    drafter = Drafter(ToyModel(ToyParams(vocab_size=28, eos_bias=-60.0)))
    drafter.open(1, request())
    drafter.open(2, request([2, 3, 29]))
    drafter.open(3, request())
    assert [gone.session_no for gone in drafter.level().shed] == [2]
    drafter.commit(3, [5, 29, 6])
    done = drafter.level()
    assert [gone.session_no for gone in done.shed] == [3]
    assert done.num_rows
    assert drafter.session_nos == (1,)
