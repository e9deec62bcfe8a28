"""What a target model said, and what draft models would have guessed at every step of it.

A *trace* is one generation: a prompt, a temperature and a seed, the tokens that the target chose,
and for every one of them the best children that each draft model ranked before it was known. The
draft models' answers off this path are not recorded: there a simulator takes those of another
position, for what stands there is never accepted and only competes for rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.noise import NoiseKey, noise_key, seed_bytes

DATA = Path(__file__).with_name("data")
BRANCH_WIDTH = 8
NATS_PER_STEP = 1.0 / 16.0
_DRAFT = "draft:"


@dataclass(frozen=True, slots=True)
class Guesses:
    """A draft model's children along one trace, best first.

    Args:
        token_ids: int32 [N, 8], for the N tokens after the prompt.
        log_probs: float32 [N, 8], as the wire carries them: in steps of 1/16 nat.
    """

    token_ids: npt.NDArray[np.int32]
    log_probs: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One recorded generation; `tokens` begin with the prompt."""

    prompt_length: int
    tokens: tuple[int, ...]
    temperature: float
    seed: int
    guesses: dict[str, Guesses]
    """By the name of the draft model."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.tokens[: self.prompt_length]

    @property
    def num_new(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(self.temperature)

    @property
    def key(self) -> NoiseKey:
        """Different for all traces of a book, so that a model knows by it which one is meant."""
        return trace_key(self.seed, self.prompt_ids)


def trace_key(seed: int, prompt_ids: Sequence[int]) -> NoiseKey:
    """The key of a request with this seed, so that recordings and real runs say the same."""
    return noise_key(seed_bytes(seed), prompt_ids)


@dataclass(frozen=True, slots=True)
class TraceBook:
    """All traces of one recording."""

    name: str
    vocab_size: int
    traces: tuple[Trace, ...]

    @property
    def draft_names(self) -> tuple[str, ...]:
        return tuple(self.traces[0].guesses)

    @property
    def temperatures(self) -> tuple[float, ...]:
        return tuple(sorted({trace.temperature for trace in self.traces}))

    def at(self, temperature: float) -> tuple[Trace, ...]:
        """The traces of one temperature. Raises ValueError when there is none."""
        found = tuple(trace for trace in self.traces if trace.temperature == temperature)
        if not found:
            raise ValueError(f"temperature {temperature} was not recorded: {self.temperatures}")
        return found

    def first_guess_rate(self, draft: str, temperature: float) -> float:
        """How often the draft model's best child is the target's token."""
        hits = [
            trace.guesses[draft].token_ids[:, 0] == np.array(trace.tokens[trace.prompt_length :])
            for trace in self.at(temperature)
        ]
        return float(np.concatenate(hits).mean())


def save_book(book: TraceBook, path: Path) -> None:
    """Write one compressed file; token ids take two bytes where they fit."""
    ids = np.uint16 if book.vocab_size <= 1 << 16 else np.uint32
    traces = book.traces
    columns: dict[str, npt.NDArray[np.generic]] = {
        "name": np.array(book.name),
        "vocab_size": np.array(book.vocab_size),
        "prompt_lengths": np.array([t.prompt_length for t in traces], np.int32),
        "prompts": np.concatenate([np.array(t.prompt_ids, ids) for t in traces]),
        "new_tokens": np.array([t.tokens[t.prompt_length :] for t in traces], ids),
        "temperatures": np.array([t.temperature for t in traces]),
        "seeds": np.array([t.seed for t in traces], np.int64),
    }
    for name in book.draft_names:
        steps = np.stack([t.guesses[name].log_probs for t in traces]) / -NATS_PER_STEP
        columns[f"{_DRAFT}{name}:ids"] = np.stack(
            [t.guesses[name].token_ids for t in traces]
        ).astype(ids)
        columns[f"{_DRAFT}{name}:steps"] = np.clip(np.rint(steps), 0, 255).astype(np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **columns)


def load_book(path: Path) -> TraceBook:
    """Read what `save_book` wrote."""
    with np.load(path, allow_pickle=False) as columns:
        names = [key.split(":")[1] for key in columns if key.endswith(":ids")]
        ids = {name: columns[f"{_DRAFT}{name}:ids"].astype(np.int32) for name in names}
        steps = {name: columns[f"{_DRAFT}{name}:steps"].astype(np.float32) for name in names}
        lengths = columns["prompt_lengths"].tolist()
        prompts = np.split(columns["prompts"], np.cumsum(lengths)[:-1])
        new_tokens, temperatures = columns["new_tokens"], columns["temperatures"].tolist()
        seeds = columns["seeds"].tolist()
        name, vocab_size = str(columns["name"]), int(columns["vocab_size"])
    traces = tuple(
        Trace(
            prompt_length=length,
            tokens=(*prompts[i].tolist(), *new_tokens[i].tolist()),
            temperature=temperatures[i],
            seed=seeds[i],
            guesses={
                name: Guesses(ids[name][i], steps[name][i] * np.float32(-NATS_PER_STEP))
                for name in names
            },
        )
        for i, length in enumerate(lengths)
    )
    return TraceBook(name, vocab_size, traces)


def demo_book() -> TraceBook:
    """The recording of the demo pair that lies beside this file."""
    return load_book(DATA / "demo-pair.npz")
