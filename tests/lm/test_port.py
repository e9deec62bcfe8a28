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
from tests.support.tiny_llama import tiny_llama, tiny_runner

Logits = Callable[[list[int]], np.ndarray]
"""From all tokens to the float64 logits after the last one."""

KEY = bytes(range(16))
PLAIN = SamplingParams(temperature=0.9)
FILTERED = SamplingParams(temperature=1.3, top_k=12, top_p=0.9, min_p=0.02)
GREEDY = SamplingParams(temperature=0)


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


class Shadow:
    """A sequence as a list of tokens: what the cache should stand for."""

    def __init__(self, sampling: SamplingParams, key: bytes) -> None:
        self.sampling, self.key = sampling, key
        self.prefix: list[int] = []
        self.tail: list[list[int]] = []  # per slot the slots from the first tail row to itself
        self.tokens: list[int] = []  # per slot its token

    def text(self, slot: int) -> list[int]:
        return self.prefix + [self.tokens[i] for i in self.tail[slot]]

    def add_tree(self, token_ids: list[int], parents: list[int]) -> Rows:
        """Rows below slots `parents` (-1: the prefix), at once counted as written."""
        first = len(self.tail)
        for token_id, parent in zip(token_ids, parents, strict=True):
            above = [] if parent < 0 else self.tail[parent]
            self.tail.append([*above, len(self.tail)])
            self.tokens.append(token_id)
        words = -(-len(self.tail) // 64)
        visible = np.zeros((len(token_ids), words), np.uint64)
        positions = np.zeros(len(token_ids), np.int32)
        for i in range(len(token_ids)):
            path = self.tail[first + i]
            positions[i] = len(self.prefix) + len(path) - 1
            for slot in path:
                visible[i, slot // 64] |= np.uint64(1 << slot % 64)
        return Rows(0, np.array(token_ids, np.int32), positions, visible, len(token_ids))

    def compact(self, commit: list[int], keep: list[int]) -> None:
        new = {slot: i for i, slot in enumerate(keep)}
        tails = [[new[i] for i in self.tail[slot] if i in new] for slot in keep]
        self.prefix += [self.tokens[slot] for slot in commit]
        self.tokens = [self.tokens[slot] for slot in keep]
        self.tail = tails

    def choice(self, logits: Logits, token_ids: list[int]) -> int:
        return choose_token(logits(token_ids), self.sampling, self.key, len(token_ids))


def numbered(rows: Rows, sequence: int) -> Rows:
    return Rows(sequence, rows.token_ids, rows.positions, rows.visible, rows.num_outputs)


def chunk(shadow: Shadow, token_ids: list[int], num_outputs: int) -> Rows:
    start = len(shadow.prefix)
    shadow.prefix += token_ids
    positions = np.arange(start, start + len(token_ids), dtype=np.int32)
    return Rows(0, np.array(token_ids, np.int32), positions, None, num_outputs)


TOKENS = st.integers(2, 30)


@st.composite
def tree_rows(draw: st.DrawFn, num_slots: int, most: int) -> tuple[list[int], list[int]]:
    count = draw(st.integers(1, most))
    tokens = draw(st.lists(TOKENS, min_size=count, max_size=count))
    parents = [draw(st.integers(-1, num_slots + i - 1)) for i in range(count)]
    return tokens, parents


@st.composite
def compaction(draw: st.DrawFn, shadow: Shadow) -> tuple[list[int], list[int]]:
    """Commit a path from the prefix down; keep some of what hangs below its end, parents first."""
    slots = range(len(shadow.tail))
    commit: list[int] = []
    if draw(st.booleans()):
        commit = shadow.tail[draw(st.sampled_from(slots))]
    below = [s for s in slots if shadow.tail[s][: len(commit)] == commit and s not in commit]
    keep: list[int] = []
    for slot in below:
        parent = shadow.tail[slot][-2] if len(shadow.tail[slot]) > 1 else -1
        is_rooted = parent in keep or len(shadow.tail[slot]) == len(commit) + 1
        if is_rooted and draw(st.booleans()):
            keep.append(slot)
    return commit, keep


@given(data=st.data())
def test_law1_output_any_batching_equals_recomputing(subject: Subject, data: st.DataObject) -> None:
    model = subject.make(4096)
    shadows: list[Shadow] = []
    for sequence in range(data.draw(st.integers(1, 4))):
        sampling = data.draw(st.sampled_from([PLAIN, FILTERED, GREEDY]))
        shadows.append(Shadow(sampling, bytes([sequence]) * 16))
        model.add_sequence(sequence, sampling, shadows[-1].key)
    for _ in range(data.draw(st.integers(1, 4))):
        batch, texts = [], []
        order = data.draw(st.permutations(range(len(shadows))))
        for sequence in order[: data.draw(st.integers(1, len(shadows)))]:
            shadow = shadows[sequence]
            is_chunk = not shadow.tail and (not shadow.prefix or data.draw(st.booleans()))
            if is_chunk:
                tokens = data.draw(st.lists(TOKENS, min_size=1, max_size=20))
                num_outputs = data.draw(st.integers(0, 2)) % (len(tokens) + 1)
                batch.append(numbered(chunk(shadow, tokens, num_outputs), sequence))
                ends = range(len(shadow.prefix) - num_outputs + 1, len(shadow.prefix) + 1)
                texts.append([shadow.prefix[:end] for end in ends])
            else:
                tokens, parents = data.draw(tree_rows(len(shadow.tail), 9))
                batch.append(numbered(shadow.add_tree(tokens, parents), sequence))
                first = len(shadow.tail) - len(tokens)
                texts.append([shadow.text(first + i) for i in range(len(tokens))])
        chosen = model.choose(batch)
        for rows, row_texts, tokens_chosen in zip(batch, texts, chosen, strict=True):
            shadow = shadows[rows.sequence]
            expected = [shadow.choice(subject.logits, text) for text in row_texts]
            assert tokens_chosen.tolist() == expected
        for sequence, shadow in enumerate(shadows):
            is_compacted = bool(shadow.tail) and data.draw(st.booleans())
            if is_compacted:
                commit, keep = data.draw(compaction(shadow))
                model.compact(sequence, commit, keep)
                shadow.compact(commit, keep)
            assert model.num_prefix_rows(sequence) == len(shadow.prefix)
            assert model.num_tail_rows(sequence) == len(shadow.tail)


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
