"""What the core refuses, what bounds it, and what a full cache or a failing model costs."""

from collections.abc import Sequence

import numpy as np
import pytest

from coordinator.engine.core import EngineCore
from coordinator.engine.measure import StepPrice
from coordinator.engine.messages import Preempted
from coordinator.engine.settings import EngineLimits
from specedge_p2p.lm.ports import ModelError, OutOfCache, Rows, TokenIds
from specedge_p2p.lm.toy import ToyModel, ToyParams
from specedge_p2p.lm.toy_text import EOS
from tests.support.cores import PARAMS, PROMPT, Clock, decode, make_core, make_run, started
from tests.support.engine import Run, batch, open_session, vertices

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


LONG = 100
FULL = len(PROMPT) + LONG - 1
"""Rows of one session that runs to its end."""


def two_long_sessions() -> Run:
    """On a cache for one; both have their first token."""
    run = make_run(cache_rows=FULL)
    for session in (1, 2):
        run.open(open_session(session, PROMPT, max_tokens=LONG))
    run.step(batch([1, 2]))
    return run


def test_a_full_cache_costs_trees_first() -> None:
    right = decode(PROMPT, LONG)
    run = two_long_sessions()
    for _ in range(FULL // 2 - len(PROMPT) - 1):
        run.step(batch([1, 2], max_rows=0))
    at = len(run.tokens[1]) - len(PROMPT)
    run.core.handle(vertices(1, 3, len(PROMPT) + at, right[at : at + 8]))
    done = run.step(batch([1, 2], sources=[3], max_rows=8))
    assert [(r.num_rows, r.token_ids) for r in done.results] == [(0, right[at : at + 1])] * 2
    assert not done.preempted


def test_a_full_cache_then_costs_the_youngest_session_time() -> None:
    run = two_long_sessions()
    while not (lost := run.step(batch([1, 2], max_rows=0)).preempted):
        assert run.live() == [1, 2]
    assert lost == [Preempted(2, len(run.tokens[2]))]
    assert len(run.tokens[1]) == len(run.tokens[2]) + 1
    run.finish_all(max_rows=0)
    assert run.core.take_failures() == []
    assert run.tokens == dict.fromkeys((1, 2), PROMPT + decode(PROMPT, LONG))


def test_prompts_wait_for_room_and_the_oldest_goes_first() -> None:
    run = make_run(cache_rows=len(PROMPT) + 15)
    lengths = {1: 7, 2: 7, 3: 7, 4: 2}
    for session, length in lengths.items():
        run.open(open_session(session, PROMPT[:length], max_tokens=16))
    first_seen: list[int] = []
    while run.live():
        done = run.step(batch(run.live()[::-1]))
        first_seen += [r.session for r in done.results if r.from_position == lengths[r.session]]
        assert not done.preempted
    assert first_seen == [1, 2, 3, 4]  # nobody slips past, however short the prompt
    for session, length in lengths.items():
        assert run.tokens[session] == PROMPT[:length] + decode(PROMPT[:length])


class Cramped(ToyModel):
    """Has no memory for forwards of more than a few rows, however many are free in its cache."""

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        if sum(len(rows.token_ids) for rows in batch) > len(PROMPT):
            raise OutOfCache("no memory is left for the forward")
        return super().choose(batch)


def test_a_forward_without_memory_is_made_smaller_and_ends_nobody_who_fits() -> None:
    run = Run(EngineCore(Cramped(PARAMS), Clock()))
    run.open(open_session(1, PROMPT))
    run.open(open_session(2, PROMPT[:3]))
    run.open(open_session(3, PROMPT * 2))
    for _ in range(100):
        run.step(batch(run.live()))
        for failure in run.core.take_failures():
            assert (failure.session, failure.code) == (3, "out_of_cache")
            assert "no memory is left" in failure.text
            run.finish[3] = "failed"
        if not run.live():
            break
    assert run.finish == {1: "length", 2: "length", 3: "failed"}
    assert run.tokens[1] == PROMPT + decode(PROMPT)
    assert run.tokens[2] == PROMPT[:3] + decode(PROMPT[:3])


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
    assert run.core.take_failures() == []
    run.step(batch([1, 2, 3]))  # 2 and 3 are prefilled again, and 2 fails by itself
    assert [(f.session, f.code) for f in run.core.take_failures()] == [(2, "model_error")]
    run.finish[2] = "failed"
    run.finish_all()
    for session in (1, 3):
        assert run.tokens[session] == PROMPT + right


def test_ready_says_what_the_model_is() -> None:
    ready = make_core().ready(StepPrice(0.02, 0.001))
    assert (ready.model, ready.vocab_size, ready.eos_token_ids) == ("toy", 32, [EOS])
    assert (ready.step_time_s, ready.row_time_s) == (0.02, 0.001)
    assert np.isfinite(ready.max_context)
