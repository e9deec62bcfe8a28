"""What every implementation of the port must do, on the toy model and on a real transformer.

The reference recomputes everything from the tokens alone: the toy's cache-free decoder, and the
unmodified transformers model in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specedge_p2p.lm.choosing import choose_token
from specedge_p2p.lm.choosing import rank_children as rank
from specedge_p2p.lm.pages import PAGE_ROWS
from specedge_p2p.lm.ports import LanguageModel, OutOfCache, Rows, SamplingParams
from specedge_p2p.lm.prefix import PageName, PrefixNames
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_logits
from specedge_p2p.noise import NoiseKey
from tests.support.near_ties import Logits
from tests.support.shadows import (
    GREEDY,
    PLAIN,
    TOKENS,
    Shadow,
    check_any_batching,
    chunk,
    compaction,
    numbered,
    tree_rows,
)
from tests.support.tiny_llama import tiny_llama, tiny_runner

KEY = bytes(range(16))


@dataclass(frozen=True)
class Subject:
    make: Callable[[int], LanguageModel]
    logits: Logits


def _llama_logits() -> Logits:
    model = tiny_llama()

    @torch.inference_mode()
    def logits(token_ids: list[int]) -> np.ndarray:
        ids = torch.tensor([token_ids])
        return np.asarray(model(ids, use_cache=False).logits[0, -1].numpy())

    return logits


TOY = Subject(lambda rows: ToyModel(cache_rows=rows), lambda ids: toy_logits(ToyParams(), ids))


@pytest.fixture(scope="module", params=["toy", "llama"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "toy":
        return TOY
    torch.set_num_threads(1)
    return Subject(lambda rows: tiny_runner(cache_rows=rows), _llama_logits())


@pytest.fixture(scope="module")
def sharing(subject: Subject) -> Subject:
    """The same, with pages that are shared."""
    if subject is not TOY:
        return subject
    return Subject(lambda rows: ToyModel(cache_rows=rows, page_rows=PAGE_ROWS), TOY.logits)


@given(data=st.data())
def test_law1_output_any_batching_equals_recomputing(sharing: Subject, data: st.DataObject) -> None:
    def check(token: int, text: list[int], sampling: SamplingParams, key: NoiseKey) -> None:
        assert token == choose_token(sharing.logits(text), sampling, key, len(text))

    check_any_batching(sharing.make(4096), check, data)


@pytest.mark.parametrize("sampling", [PLAIN, GREEDY])
def test_children_are_ranked_with_the_targets_noise(
    subject: Subject, sampling: SamplingParams
) -> None:
    model = subject.make(4096)
    shadow = Shadow(sampling, KEY)
    model.add_sequence(0, sampling, KEY)
    model.choose([chunk(shadow, [0, 9, 8, 7], 1)])
    [children] = model.expand([shadow.add_tree([4, 5, 6], [-1, 0, 0])], 5)
    for row in range(3):
        text = shadow.text(row)
        expected = rank(subject.logits(text), sampling.temperature, KEY, len(text), 5)
        assert children.token_ids[row].tolist() == expected[0].tolist()
        np.testing.assert_allclose(children.log_probs[row], expected[1], atol=1e-5)
    # The best child of a model that equals the target is the target's choice.
    choices = [shadow.choice(subject.logits, shadow.text(row)) for row in range(3)]
    assert children.token_ids[:, 0].tolist() == choices


def test_law7_bounded_full_cache_refuses_and_changes_nothing(subject: Subject) -> None:
    model = subject.make(64)
    shadow = Shadow(PLAIN, KEY)
    for sequence in range(2):
        model.add_sequence(sequence, PLAIN, KEY)
    [[_token]] = model.choose([chunk(shadow, [0] + [5] * 31, 1)])
    other = numbered(chunk(Shadow(PLAIN, KEY), [0] + [5] * 20, 1), 1)
    more = chunk(shadow, [4] * 20, 1)
    with pytest.raises(OutOfCache):
        model.choose([other, more])
    assert model.num_prefix_rows(0) == 32
    assert model.num_prefix_rows(1) == 0
    assert model.num_free_rows == 32
    [[after]] = model.choose([more])
    assert after == shadow.choice(subject.logits, shadow.prefix)
    model.drop_sequence(0)
    assert model.num_free_rows == 64
    model.drop_sequence(0)
    assert model.num_free_rows == 64


def test_rows_of_a_dropped_sequence_leave_no_trace(subject: Subject) -> None:
    model = subject.make(64)
    for round_no in range(4):
        shadow = Shadow(PLAIN, KEY)
        model.add_sequence(round_no, PLAIN, KEY)
        tokens = [0] + [5 + round_no] * 39
        [[token]] = model.choose([numbered(chunk(shadow, tokens, 1), round_no)])
        assert token == shadow.choice(subject.logits, tokens)
        model.drop_sequence(round_no)


def bad(token_ids: list[int], positions: list[int], masks: list[int] | None, outputs: int) -> Rows:
    visible = None if masks is None else np.array(masks, np.uint64)[:, None]
    return Rows(0, np.array(token_ids, np.int32), np.array(positions, np.int32), visible, outputs)


@pytest.mark.parametrize(
    "rows",
    [
        bad([], [], None, 0),
        bad([3], [1], None, 1),  # a gap after the empty prefix
        bad([3], [0], None, 2),
        bad([999], [0], None, 1),
        bad([3], [-1], None, 1),
        bad([3], [5000], None, 1),
        bad([3], [0], [0], 1),  # does not see itself
        bad([3, 3], [0, 1], [0b11, 0b10], 1),  # sees a later row
        bad([3, 3], [0, 1], [0b1], 1),
    ],
)
def test_law7_bounded_forbidden_rows_are_refused(subject: Subject, rows: Rows) -> None:
    model = subject.make(64)
    model.add_sequence(0, PLAIN, KEY)
    with pytest.raises(ValueError, match=r"outside|row|column|num_outputs|visible"):
        model.choose([rows])
    assert model.num_free_rows == 64


def test_forbidden_calls_are_refused(subject: Subject) -> None:
    model = subject.make(64)
    model.add_sequence(0, PLAIN, KEY)
    with pytest.raises(ValueError, match="open already"):
        model.add_sequence(0, PLAIN, KEY)
    with pytest.raises(ValueError, match="at least one"):
        model.choose([])
    with pytest.raises(ValueError, match="not open"):
        model.num_tail_rows(7)
    shadow = Shadow(PLAIN, KEY)
    tree = shadow.add_tree([0, 5], [-1, 0])
    with pytest.raises(ValueError, match="once"):
        model.choose([tree, tree])
    with pytest.raises(ValueError, match="branch_width"):
        model.expand([tree], 0)
    model.choose([tree])
    with pytest.raises(ValueError, match="tail"):
        model.choose([bad([3], [0], None, 1)])
    for commit, keep in (([2], []), ([0], [0]), ([-1], [])):
        with pytest.raises(ValueError, match="slots"):
            model.compact(0, commit, keep)
    assert model.num_tail_rows(0) == 2


def test_levels_grow_below_kept_slots(subject: Subject) -> None:
    """A drafter's life: levels, then a reroot that keeps what hangs below, then more levels."""
    model = subject.make(4096)
    shadow = Shadow(PLAIN, KEY)
    model.add_sequence(0, PLAIN, KEY)
    model.choose([chunk(shadow, [0, 9, 8], 1)])
    levels = [([4], [-1]), ([5, 6], [0, 0]), ([7, 8], [2, 1])]
    reroots = [([0], [2, 3]), ([0], [1, 2])]
    for i, (tokens, parents) in enumerate([*levels, ([9, 10], [1, 0]), ([11], [0])]):
        if i >= 3:
            commit, keep = reroots[i - 3]
            model.compact(0, commit, keep)
            shadow.compact(commit, keep)
        [chosen] = model.choose([shadow.add_tree(tokens, parents)])
        first = len(shadow.tail) - len(tokens)
        texts = [shadow.text(first + j) for j in range(len(tokens))]
        assert chosen.tolist() == [shadow.choice(subject.logits, text) for text in texts]


def names_of(token_ids: list[int], salt: str = "") -> list[PageName]:
    return PrefixNames(salt, PAGE_ROWS).of(token_ids, len(token_ids))


TEXTS = [[0] + [5 + i // 20] * 20 + list(range(2, 30)) + [7] * 6 for i in range(0, 60, 20)]


@given(data=st.data())
def test_law1_output_shared_prefixes_equal_recomputing(
    sharing: Subject, data: st.DataObject
) -> None:
    """Sequences come, begin with what others have left, grow trees, and go; the cache is small."""
    model = sharing.make(12 * PAGE_ROWS)
    shadows: dict[int, Shadow] = {}
    for sequence in range(data.draw(st.integers(2, 8))):
        for gone in [s for s in shadows if data.draw(st.booleans())]:
            model.drop_sequence(gone)
            del shadows[gone]
        prompt = data.draw(st.sampled_from(TEXTS))[: data.draw(st.integers(1, 55))]
        prompt = prompt + data.draw(st.lists(TOKENS, min_size=1, max_size=3))
        names = names_of(prompt[:-1])
        shadow = shadows[sequence] = Shadow(PLAIN, bytes([sequence]) * 16)
        model.add_sequence(sequence, PLAIN, shadow.key)
        num_known = model.adopt_prefix(sequence, names)
        assert num_known % PAGE_ROWS == 0
        assert model.num_prefix_rows(sequence) == num_known < len(prompt)
        shadow.prefix = prompt[:num_known]
        try:
            [[token]] = model.choose([numbered(chunk(shadow, prompt[num_known:], 1), sequence)])
        except OutOfCache:
            model.drop_sequence(sequence)
            del shadows[sequence]
            continue
        assert token == shadow.choice(sharing.logits, prompt)
        for number, other in shadows.items():  # everybody goes on behind what is shared
            grow_and_keep(model, sharing, number, other, data)
            full = len(other.prefix) // PAGE_ROWS
            model.share_prefix(number, names_of(other.prefix)[:full])
    for sequence in list(shadows):
        model.drop_sequence(sequence)
    assert model.num_free_rows == model.cache.num_rows


def grow_and_keep(
    model: LanguageModel, subject: Subject, number: int, shadow: Shadow, data: st.DataObject
) -> None:
    tokens, parents = data.draw(tree_rows(0, 5))
    rows = numbered(shadow.add_tree(tokens, parents), number)
    try:
        [chosen] = model.choose([rows])
    except OutOfCache:
        shadow.compact([], [])
        return
    texts = [shadow.text(i) for i in range(len(tokens))]
    assert chosen.tolist() == [shadow.choice(subject.logits, text) for text in texts]
    commit, _ = data.draw(compaction(shadow))
    model.compact(number, commit)
    shadow.compact(commit, [])


def test_pages_under_another_salt_are_not_found(sharing: Subject) -> None:
    model = sharing.make(512)
    shadow = Shadow(PLAIN, KEY)
    tokens = [0] + [5] * 40
    for sequence in range(3):
        model.add_sequence(sequence, PLAIN, KEY)
    model.choose([chunk(shadow, tokens, 0)])
    model.share_prefix(0, names_of(tokens, "mine"))
    assert model.adopt_prefix(1, names_of(tokens, "yours")) == 0
    assert model.adopt_prefix(1, names_of(tokens, "mine")) == 2 * PAGE_ROWS
    assert model.adopt_prefix(1, names_of(tokens, "mine")) == 0  # it has them
    assert model.adopt_prefix(2, names_of(tokens, "mine")[:1]) == PAGE_ROWS
    assert model.adopt_prefix(2, names_of(tokens, "mine")) == PAGE_ROWS  # and further
    with pytest.raises(ValueError, match="pages shared"):
        model.share_prefix(0, names_of(tokens + tokens, "mine"))
    assert model.num_free_rows == 512 - 3 * PAGE_ROWS


def test_a_toy_that_does_not_share_shares_nothing() -> None:
    model = TOY.make(64)
    assert (model.cache.page_rows, model.cache.can_share) == (1, False)
    shadow = Shadow(PLAIN, KEY)
    for sequence in range(2):
        model.add_sequence(sequence, PLAIN, KEY)
    model.choose([chunk(shadow, [0] + [5] * 20, 0)])
    model.share_prefix(0, names_of(shadow.prefix))
    assert model.adopt_prefix(1, names_of(shadow.prefix)) == 0
