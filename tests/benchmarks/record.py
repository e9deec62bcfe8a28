"""Record traces of a pair of models for the simulator.

`make bench ARGS="record --out FILE"`, with `--target` and `--draft` for another pair. Prompts are
stretches of held-out files of the running Python's standard library, which the demo pair has not
been trained on. Recorded are four draft models:

* `small`: the draft model with the sampling noise that the target uses;
* `unshared`: the same without noise, as a draft model is used elsewhere;
* `large`: a geometric mix of both models' distributions, for a draft model of a better kind;
* `target`: the target model itself with its own noise, which is never wrong.
"""

import sysconfig
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from specedge_p2p.demo.train import read_corpus
from specedge_p2p.lm.choosing import rank_children
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import LanguageModel, Rows, SamplingParams
from specedge_p2p.lm.text import Tokenizer
from specedge_p2p.noise import NoiseKey
from tests.simulator.traces import (
    BRANCH_WIDTH,
    NATS_PER_STEP,
    Guesses,
    Trace,
    TraceBook,
    save_book,
    trace_key,
)

NUM_PROMPTS = 32
NUM_NEW = 96
PROMPT_TOKENS = (64, 128)
TEMPERATURES = (0.0, 0.7, 1.0)
SEED = 7
LARGE_MIX = 0.35
"""Share of the target's log probabilities in those of the `large` draft model."""

Floats = npt.NDArray[np.float64]


def held_out_prompts(tokenizer: Tokenizer, num_prompts: int) -> list[list[int]]:
    """One stretch of each of so many files; where it begins and how long it is, a hash decides."""
    texts = read_corpus(Path(sysconfig.get_paths()["stdlib"])).held_out
    least, most = PROMPT_TOKENS
    prompts = []
    for text in texts:
        first, *tokens = tokenizer.encode(text)
        if len(tokens) < most + NUM_NEW:
            continue
        digest = sha256(text.encode()).digest()
        length = least + int.from_bytes(digest[:4], "little") % (most - least + 1)
        start = int.from_bytes(digest[4:8], "little") % (len(tokens) - length - NUM_NEW + 1)
        prompts.append([first, *tokens[start : start + length - 1]])
    if len(prompts) < num_prompts:
        raise SystemExit(f"record: only {len(prompts)} held-out files are long enough")
    return prompts[:num_prompts]


def decode(
    model: LanguageModel, prompts: Sequence[Sequence[int]], temperature: float
) -> list[list[int]]:
    """Prompts with what the model chooses after each, all side by side."""
    sampling = SamplingParams(temperature)
    texts = [list(prompt) for prompt in prompts]
    for i, prompt in enumerate(prompts):
        model.add_sequence(i, sampling, trace_key(SEED, prompt))
    batch = [_causal(i, text, 0, 1) for i, text in enumerate(texts)]
    for _ in range(NUM_NEW):
        for text, chosen in zip(texts, model.choose(batch), strict=True):
            text.append(int(chosen[0]))
        batch = [_causal(i, text, len(text) - 1, 1) for i, text in enumerate(texts)]
    for i in range(len(prompts)):
        model.drop_sequence(i)
    return texts


def log_probs_along(model: LanguageModel, tokens: Sequence[int], num_last: int) -> Floats:
    """Float64 [num_last, V]: log softmax of the logits for the last tokens, by token id."""
    model.add_sequence(0, SamplingParams(temperature=0.0), bytes(16))
    rows = _causal(0, tokens[:-1], 0, num_last)
    children = model.expand([rows], model.info.vocab_size)[0]
    model.drop_sequence(0)
    by_token = np.empty(children.log_probs.shape, np.float64)
    np.put_along_axis(by_token, children.token_ids.astype(np.int64), children.log_probs, axis=1)
    return by_token


def ranked(log_probs: Floats, temperature: float, key: NoiseKey | None, first: int) -> Guesses:
    """The best children of each row; without a key they are ranked as if there were no noise.

    Args:
        log_probs: [N, V].
        temperature: of the sampling.
        key: of the noise.
        first: absolute position of the token that the first row is about.
    """
    ids, scores = [], []
    for position, row in enumerate(log_probs, first):
        if key is None and temperature > 0:
            best = rank_children(row / temperature, 0.0, bytes(16), position, BRANCH_WIDTH)
        else:
            best = rank_children(row, temperature, key or bytes(16), position, BRANCH_WIDTH)
        ids.append(best[0])
        scores.append(best[1])
    steps = np.clip(np.rint(np.stack(scores) / -NATS_PER_STEP), 0, 255).astype(np.float32)
    return Guesses(np.stack(ids), steps * np.float32(-NATS_PER_STEP))


def record(target: LanguageModel, draft: LanguageModel, prompts: list[list[int]]) -> TraceBook:
    """All prompts at all temperatures."""
    traces = []
    for temperature in TEMPERATURES:
        for prompt, tokens in zip(prompts, decode(target, prompts, temperature), strict=True):
            key, first = trace_key(SEED, prompt), len(prompt)
            small = log_probs_along(draft, tokens, NUM_NEW)
            known = log_probs_along(target, tokens, NUM_NEW)
            large = (1.0 - LARGE_MIX) * small + LARGE_MIX * known
            guesses = {
                "small": ranked(small, temperature, key, first),
                "unshared": ranked(small, temperature, None, first),
                "large": ranked(large, temperature, key, first),
                "target": ranked(known, temperature, key, first),
            }
            traces.append(Trace(first, tuple(tokens), temperature, SEED, guesses))
        print(f"recorded {len(prompts)} generations at temperature {temperature}")
    name = f"{target.info.name} + {draft.info.name}"
    return TraceBook(name, target.info.vocab_size, tuple(traces))


def _causal(sequence: int, tokens: Sequence[int], start: int, num_outputs: int) -> Rows:
    return Rows(
        sequence=sequence,
        token_ids=np.array(tokens[start:], np.int32),
        positions=np.arange(start, len(tokens), dtype=np.int32),
        visible=None,
        num_outputs=num_outputs,
    )


def record_pair(
    *,
    out: Annotated[Path, typer.Option(help="File for the simulator's traces, as in FILE.npz.")],
    target: Annotated[str, typer.Option(help="Name or folder.")] = "demo-target",
    draft: Annotated[str, typer.Option(help="Name or folder.")] = "demo-draft",
    device: Annotated[str, typer.Option(help="Where both models run.")] = "cpu",
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = NUM_PROMPTS,
) -> None:
    """Record what a pair of models says, for the simulator."""
    texts = held_out_prompts(Tokenizer.load(target), prompts)
    models = [load_model(name, device=device, threads=1) for name in (target, draft)]
    book = record(models[0], models[1], texts)
    save_book(book, out)
    for name in book.draft_names:
        rates = ", ".join(f"{book.first_guess_rate(name, t):.3f} at {t:g}" for t in TEMPERATURES)
        print(f"{name}: first guess right {rates}")
    print(f"{out}: {out.stat().st_size} bytes")
