"""`python -m tests.benchmarks determinism`: how often a batch's shape changes a token.

Texts are decoded in float64, where no shape changes anything. Each dtype then reads the same texts
in batches of several shapes, and what it would have chosen after every token is compared with what
float64 chose, and with what the same dtype chooses one token at a time. The reference logits come
from the unmodified transformers model with the same weights in float64, and
`tests/support/near_ties.py` judges each flip with them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from specedge_p2p.demo.models import demo_path
from specedge_p2p.lm.choosing import choose_token
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import LanguageModel, Rows, SamplingParams
from specedge_p2p.lm.text import Tokenizer
from specedge_p2p.noise import NoiseKey
from tests.benchmarks.figures import Check
from tests.benchmarks.record import held_out_prompts
from tests.simulator.traces import trace_key
from tests.support.near_ties import error_bound, possible_tokens

MODEL = "demo-target"
NUM_TEXTS = 8
TEMPERATURES = (0.0, 0.7)
SEED = 11
PER = 10_000
MOST_FLOAT32 = 5.0
"""Flips per 10,000 tokens that float32 may show."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """Batches of `num_sequences` trees of `num_rows`, of which `depth` are the text itself."""

    num_sequences: int
    depth: int
    num_rows: int
    is_chunk: bool = False

    def __str__(self) -> str:
        kind = "chunk of " if self.is_chunk else ""
        return f"{self.num_sequences} x {kind}{self.num_rows}"


PLAIN = Shape(1, 1, 1)
SHAPES = (PLAIN, Shape(8, 1, 1), Shape(8, 5, 9), Shape(8, 9, 33), Shape(1, 128, 128, is_chunk=True))
DTYPES = ("float64", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Text:
    """A text, how float64 chose it, and the reference's logits float64 [choices, V]."""

    tokens: tuple[int, ...]
    num_prompt: int
    sampling: SamplingParams
    key: NoiseKey
    logits: Floats

    @property
    def chosen(self) -> tuple[int, ...]:
        return self.tokens[self.num_prompt :]


@dataclass(frozen=True, slots=True)
class Row:
    """Flips are choices that differ, per 10,000 tokens.

    Args:
        flips_from_float64: against the text.
        flips_from_plain: against the same dtype one token at a time.
        num_beyond_bound: flips that the bound of the dtype does not explain.
    """

    dtype: str
    shape: str
    temperature: float
    num_tokens: int
    flips_from_float64: float
    flips_from_plain: float
    num_beyond_bound: int


@dataclass(frozen=True, slots=True)
class Figures:
    rows: list[Row]
    checks: list[Check]


def measure(num_tokens: int, device: str = "cpu") -> Figures:
    """Read `num_tokens` tokens of each text in every dtype and shape; texts are those of a CPU."""
    torch.set_num_threads(1)
    texts = _texts(num_tokens)
    rows = [row for dtype in DTYPES for row in _rows_of(dtype, texts, device)]
    return Figures(rows, _checks(rows))


def _texts(num_tokens: int) -> list[Text]:
    """Held-out prompts with what float64 says after them, at every temperature."""
    model = load_model(MODEL, dtype="float64", device="cpu", threads=1)
    twin = AutoModelForCausalLM.from_pretrained(demo_path(MODEL), dtype=torch.float64)
    prompts = held_out_prompts(Tokenizer.load(MODEL), NUM_TEXTS)
    texts = []
    for temperature in TEMPERATURES:
        sampling = SamplingParams(temperature)
        tokens = [list(prompt) for prompt in prompts]
        for i, prompt in enumerate(prompts):
            model.add_sequence(i, sampling, trace_key(SEED, prompt))
            model.choose([_causal(i, prompt, 0, len(prompt) - 1, 0)])
        for _ in range(num_tokens):
            batch = [_causal(i, text, len(text) - 1, len(text), 1) for i, text in enumerate(tokens)]
            for text, chosen in zip(tokens, model.choose(batch), strict=True):
                text.append(int(chosen[0]))
        for i, prompt in enumerate(prompts):
            model.drop_sequence(i)
            key = trace_key(SEED, prompt)
            logits = _reference(twin, tokens[i][:-1], num_tokens)
            texts.append(Text(tuple(tokens[i]), len(prompt), sampling, key, logits))
    return texts


@torch.inference_mode()
def _reference(twin: torch.nn.Module, tokens: Sequence[int], num_last: int) -> Floats:
    ids = torch.tensor([list(tokens)])
    return np.asarray(twin(ids, use_cache=False, logits_to_keep=num_last).logits[0].numpy())


def _rows_of(dtype: str, texts: Sequence[Text], device: str) -> list[Row]:
    model = load_model(MODEL, dtype=dtype, device=device, threads=1)
    rows = []
    for temperature in TEMPERATURES:
        same = [text for text in texts if text.sampling.temperature == temperature]
        plain = _read(model, same, PLAIN)
        for shape in SHAPES:
            chosen = plain if shape == PLAIN else _read(model, same, shape)
            rows.append(_row(dtype, shape, same, chosen, plain))
    return rows


def _row(
    dtype: str,
    shape: Shape,
    texts: Sequence[Text],
    chosen: Sequence[Sequence[int]],
    plain: Sequence[Sequence[int]],
) -> Row:
    num_tokens = sum(len(text.chosen) for text in texts)
    from_float64, from_plain, num_beyond = 0, 0, 0
    for text, tokens, plain_tokens in zip(texts, chosen, plain, strict=True):
        for i, (token, plain_token) in enumerate(zip(tokens, plain_tokens, strict=True)):
            from_plain += token != plain_token
            if token != text.chosen[i]:
                from_float64 += 1
                num_beyond += not _is_near_tie(text, i, token, dtype)
    return Row(
        dtype=dtype,
        shape=str(shape),
        temperature=texts[0].sampling.temperature,
        num_tokens=num_tokens,
        flips_from_float64=PER * from_float64 / num_tokens,
        flips_from_plain=PER * from_plain / num_tokens,
        num_beyond_bound=num_beyond,
    )


def _is_near_tie(text: Text, i: int, token: int, dtype: str) -> bool:
    logits, position = text.logits[i], text.num_prompt + i
    assert choose_token(logits, text.sampling, text.key, position) == text.chosen[i]
    bound = error_bound(logits, dtype)
    return bool(possible_tokens(logits, text.sampling, text.key, position, bound)[token])


def _read(model: LanguageModel, texts: Sequence[Text], shape: Shape) -> list[list[int]]:
    """What the model chooses after every token of the texts, in batches of this shape."""
    chosen: list[list[int]] = [[] for _ in texts]
    for first in range(0, len(texts), shape.num_sequences):
        group = texts[first : first + shape.num_sequences]
        for i, text in enumerate(group):
            model.add_sequence(i, text.sampling, text.key)
            model.choose([_causal(i, text.tokens, 0, text.num_prompt - 1, 0)])
        num_tokens = len(group[0].chosen)
        for start in range(0, num_tokens, shape.depth):
            depth = min(shape.depth, num_tokens - start)
            batch = [_batch_rows(i, text, start, depth, shape) for i, text in enumerate(group)]
            for i, tokens in enumerate(model.choose(batch)):
                chosen[first + i] += tokens[:depth].tolist()
                model.compact(i, range(0 if shape.is_chunk else depth))
        for i in range(len(group)):
            model.drop_sequence(i)
    return chosen


def _batch_rows(sequence: int, text: Text, start: int, depth: int, shape: Shape) -> Rows:
    first = text.num_prompt - 1 + start
    if shape.is_chunk:
        return _causal(sequence, text.tokens, first, first + depth, depth)
    path = list(text.tokens[first : first + depth])
    tokens, depths = list(path), list(range(depth))
    masks = [(1 << (i + 1)) - 1 for i in range(depth)]
    for extra in range(shape.num_rows - depth if depth > 1 else 0):
        below = 1 + extra % (depth - 1)  # a wrong token beside that of the path
        tokens.append((path[below] + 1 + extra) % text.logits.shape[1])
        depths.append(below)
        masks.append(masks[below - 1] | 1 << len(masks))
    return Rows(
        sequence=sequence,
        token_ids=np.array(tokens, np.int32),
        positions=first + np.array(depths, np.int32),
        visible=np.array(masks, np.uint64)[:, None],
        num_outputs=len(tokens),
    )


def _causal(sequence: int, tokens: Sequence[int], start: int, stop: int, num_outputs: int) -> Rows:
    token_ids = np.array(tokens[start:stop], np.int32)
    return Rows(sequence, token_ids, np.arange(start, stop, dtype=np.int32), None, num_outputs)


def _checks(rows: Sequence[Row]) -> list[Check]:
    num_beyond = sum(row.num_beyond_bound for row in rows)
    checks = [Check("determinism/beyond-bound", num_beyond, 0.0, num_beyond == 0)]
    for dtype, bound in (("float64", 0.0), ("float32", MOST_FLOAT32)):
        flips = [
            max(row.flips_from_float64, row.flips_from_plain) for row in rows if row.dtype == dtype
        ]
        worst = max(flips, default=math.nan)
        checks.append(Check(f"determinism/{dtype}", worst, bound, worst <= bound))
    return checks


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| dtype | sequences x rows | T | tokens | flips from float64 | from one at a time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.dtype} | {row.shape} | {row.temperature:g} | {row.num_tokens} "
        f"| {row.flips_from_float64:.1f} | {row.flips_from_plain:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)
