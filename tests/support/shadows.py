"""Sequences as lists of tokens: what a model's cache should stand for, and random batches of them.

The reference recomputes everything from the tokens alone.
"""

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from specedge_p2p.lm.choosing import choose_token
from specedge_p2p.lm.ports import LanguageModel, Rows, SamplingParams
from specedge_p2p.lm.prefix import PageName, PrefixNames
from specedge_p2p.noise import NoiseKey
from tests.support.near_ties import Logits

PLAIN = SamplingParams(temperature=0.9)
FILTERED = SamplingParams(temperature=1.3, top_k=12, top_p=0.9, min_p=0.02)
GREEDY = SamplingParams(temperature=0)

TOKENS = st.integers(2, 30)
OPENING = [2 + i * i % 29 for i in range(40)]
"""What many texts begin with, some pages long."""

CheckChoice = Callable[[int, list[int], SamplingParams, NoiseKey], None]
"""Called with a chosen token and all tokens before it."""


class Shadow:
    """A sequence as a list of tokens: what the cache should stand for."""

    def __init__(self, sampling: SamplingParams, key: NoiseKey) -> None:
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

    def preempt(self) -> list[int]:
        """Lose all rows; the tokens that must be read again."""
        prefix, self.prefix = self.prefix, []
        self.tail, self.tokens = [], []
        return prefix

    def choice(self, logits: Logits, token_ids: list[int]) -> int:
        return choose_token(logits(token_ids), self.sampling, self.key, len(token_ids))


def numbered(rows: Rows, sequence: int) -> Rows:
    return Rows(sequence, rows.token_ids, rows.positions, rows.visible, rows.num_outputs)


def chunk(shadow: Shadow, token_ids: list[int], num_outputs: int) -> Rows:
    start = len(shadow.prefix)
    shadow.prefix += token_ids
    positions = np.arange(start, start + len(token_ids), dtype=np.int32)
    return Rows(0, np.array(token_ids, np.int32), positions, None, num_outputs)


beginnings = st.one_of(
    st.lists(TOKENS, min_size=1, max_size=20),
    st.integers(1, len(OPENING)).map(lambda num: OPENING[:num]),
)


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


def check_any_batching(model: LanguageModel, check: CheckChoice, data: st.DataObject) -> None:
    """Ragged batches of chunks, trees and plain rows, with compaction and preemption between.

    Beginnings are shared, and adopted where a text begins or is read again. Every token that the
    model chooses is handed to `check`. Sequences 0 to 3 of the model are used.
    """
    shadows: list[Shadow] = []
    for sequence in range(4):
        model.drop_sequence(sequence)  # of the last example, which may have failed
    for sequence in range(data.draw(st.integers(1, 4))):
        sampling = data.draw(st.sampled_from([PLAIN, FILTERED, GREEDY]))
        shadows.append(Shadow(sampling, bytes([sequence]) * 16))
        model.add_sequence(sequence, sampling, shadows[-1].key)
    lost: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 4))):
        batch, texts = [], []
        order = data.draw(st.permutations(range(len(shadows))))
        for sequence in order[: data.draw(st.integers(1, len(shadows)))]:
            shadow, unread = shadows[sequence], lost.pop(sequence, [])
            if not shadow.prefix:
                unread = _adopt(model, sequence, shadow, unread or data.draw(beginnings))
            rows, row_texts = _random_rows(shadow, unread, data)
            batch.append(numbered(rows, sequence))
            texts.append(row_texts)
        for rows, row_texts, chosen in zip(batch, texts, model.choose(batch), strict=True):
            shadow = shadows[rows.sequence]
            for token, text in zip(chosen.tolist(), row_texts, strict=True):
                check(token, text, shadow.sampling, shadow.key)
        for sequence, shadow in enumerate(shadows):
            if unread := _change(model, sequence, shadow, data):
                lost[sequence] = unread
            assert model.num_prefix_rows(sequence) == len(shadow.prefix)
            assert model.num_tail_rows(sequence) == len(shadow.tail)


def _change(model: LanguageModel, sequence: int, shadow: Shadow, data: st.DataObject) -> list[int]:
    """Compact a sequence, preempt it, share its prefix, or none; what it has to read again."""
    is_chosen = data.draw(st.booleans())
    if shadow.tail and is_chosen:
        commit, keep = data.draw(compaction(shadow))
        model.compact(sequence, commit, keep)
        shadow.compact(commit, keep)
    elif shadow.prefix and data.draw(st.integers(0, 5)) == 5:
        model.drop_sequence(sequence)
        model.add_sequence(sequence, shadow.sampling, shadow.key)
        return shadow.preempt()
    elif data.draw(st.booleans()):
        model.share_prefix(sequence, _names(model, shadow.prefix, len(shadow.prefix)))
    return []


def _adopt(model: LanguageModel, sequence: int, shadow: Shadow, token_ids: list[int]) -> list[int]:
    """Take what is shared of a text's beginning; the tokens that are still to be read."""
    num_rows = model.adopt_prefix(sequence, _names(model, token_ids, len(token_ids) - 1))
    shadow.prefix = token_ids[:num_rows]
    return token_ids[num_rows:]


def _names(model: LanguageModel, token_ids: list[int], num_rows: int) -> list[PageName]:
    return PrefixNames("a key", model.cache.page_rows).of(token_ids, num_rows)


def _random_rows(
    shadow: Shadow, unread: list[int], data: st.DataObject
) -> tuple[Rows, list[list[int]]]:
    """A chunk or a tree, and the text before each chosen token."""
    if unread or (not shadow.tail and data.draw(st.booleans())):
        tokens = unread or data.draw(st.lists(TOKENS, min_size=1, max_size=20))
        num_outputs = data.draw(st.integers(0, 2)) % (len(tokens) + 1)
        rows = chunk(shadow, tokens, num_outputs)
        ends = range(len(shadow.prefix) - num_outputs + 1, len(shadow.prefix) + 1)
        return rows, [shadow.prefix[:end] for end in ends]
    tokens, parents = data.draw(tree_rows(len(shadow.tail), 9))
    rows = shadow.add_tree(tokens, parents)
    first = len(shadow.tail) - len(tokens)
    return rows, [shadow.text(first + i) for i in range(len(tokens))]
