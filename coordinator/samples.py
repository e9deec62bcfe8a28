"""The sample of the target's own tokens by which nodes choose their draft models.

It is made when somebody first asks, by generations like any other but without volunteers, and kept
for as long as the target is the same.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from coordinator.gateway.ports import GenerationRequest, Generations, Refused, TextEvent
from coordinator.sessions import Sessions
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.noise import noise_key, seed_bytes
from specedge_p2p.overlay.sample import (
    DraftSample,
    SampleCase,
    SampleError,
    decode_sample,
    encode_sample,
    sample_case,
)

log = logging.getLogger(__name__)

TEXTS = (
    "def read_config(path):\n    with open(path) as file:\n        lines = file.readlines()\n"
    "    settings = {}\n    for line in lines:\n",
    "class Account:\n    def __init__(self, owner, balance=0):\n        self.owner = owner\n",
    "The harbour had been quiet since the storm. Fishermen mended their nets on the quay, and",
    "Question: Why does ice float on water?\nAnswer:",
)
"""Prompts of several kinds; nobody's own."""
TEMPERATURES = (0.0, 0.7)
NUM_TOKENS = 64
MAX_PROMPT_TOKENS = 128
LEAST_TOKENS = 8
"""What ends sooner says little and is left out."""
IDLE_S = 5.0
"""So long the making waits for the sessions of users to end."""


@dataclass(frozen=True, slots=True)
class SampleTarget:
    """The target as it is now.

    Args:
        name, fingerprint: the model.
        tokenizer_fingerprint, vocab_size: its tokens.
        step_time_s: one engine step.
    """

    name: str
    fingerprint: bytes
    tokenizer_fingerprint: bytes
    vocab_size: int
    step_time_s: float


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    fingerprint: bytes
    sample: bytes


@dataclass(slots=True)
class _Work:
    """What is done for one target.

    Args:
        fingerprint: of the target.
        kept: all that is to be handed out; none before it is complete.
        cases: what is done of it; one that was too short is None.
    """

    fingerprint: bytes
    kept: tuple[SampleCase, ...] = ()
    cases: dict[tuple[str, float], SampleCase | None] = field(default_factory=dict)


class SampleMaker:
    """Makes the sample once, when the first one asks for it, and keeps it in a file."""

    def __init__(
        self,
        generations: Generations,
        sessions: Sessions,
        target: Callable[[], SampleTarget | None],
        path: Path | None,
    ) -> None:
        self._generations, self._sessions = generations, sessions
        self._target, self._path = target, path
        self._work: _Work | None = None
        self._asked = trio.Event()
        self._ended = trio.Event()
        """Of the making that the next one who asks waits for."""

    async def run(self) -> None:
        """Make what is asked for, for ever.

        Nobody who asks waits as long as a slow engine takes for it. What was begun for one who has
        left is there for the next one.
        """
        while True:
            await self._asked.wait()
            target = self._target()
            if target is not None:
                if self._work is None or self._work.fingerprint != target.fingerprint:
                    self._work = _Work(target.fingerprint, self._load(target))
                if not self._work.kept:
                    await self._make(target, self._work)
            self._asked, ended, self._ended = trio.Event(), self._ended, trio.Event()
            ended.set()

    async def current(self) -> DraftSample | None:
        """The sample, with the step time as of now; None while there is none to be had.

        Whoever asks first waits until `run` has made it.
        """
        sample = self._found()
        if sample is None and self._target() is not None:
            self._asked.set()
            await self._ended.wait()
            sample = self._found()
        return sample

    def _found(self) -> DraftSample | None:
        target, work = self._target(), self._work
        if target is None or work is None or work.fingerprint != target.fingerprint:
            return None
        return _sample(target, work.kept)

    async def _make(self, target: SampleTarget, work: _Work) -> None:
        with trio.move_on_after(IDLE_S):
            await self._sessions.until_empty()
        async with trio.open_nursery() as nursery:
            for text in TEXTS:
                for temperature in TEMPERATURES:
                    if (text, temperature) not in work.cases:
                        nursery.start_soon(self._generate, target, work, text, temperature)
        if len(work.cases) < len(TEXTS) * len(TEMPERATURES):
            return  # some were refused; the next who asks tries again
        work.kept = tuple(case for case in work.cases.values() if case is not None)
        sample = _sample(target, work.kept)
        if sample is not None:
            self._store(target, sample)

    async def _generate(
        self, target: SampleTarget, work: _Work, text: str, temperature: float
    ) -> None:
        seed = TEXTS.index(text)
        tokens: list[int] = []
        try:
            prompt_ids = self._generations.encode(text)[:MAX_PROMPT_TOKENS]
            request = GenerationRequest(
                model=target.name,
                prompt_ids=prompt_ids,
                sampling=SamplingParams(temperature),
                seed=seed,
                max_tokens=NUM_TOKENS,
                volunteers="none",
            )
            async with self._generations.generate(request) as events:
                async for event in events:
                    if isinstance(event, TextEvent):
                        tokens += [token.token_id for token in event.tokens]
        except Refused as refused:
            log.info("no sample for draft models yet: %s", refused.text)
            return
        now = self._target()
        if now is None or now.fingerprint != work.fingerprint:
            return  # the engine came back with another model, which may have said some of it
        key = noise_key(seed_bytes(seed), prompt_ids)
        is_long = len(tokens) >= LEAST_TOKENS
        case = sample_case(list(prompt_ids), tokens, temperature, key) if is_long else None
        work.cases[text, temperature] = case

    # --- the file --------------------------------------------------------------------------------

    def _load(self, target: SampleTarget) -> tuple[SampleCase, ...]:
        if self._path is None:
            return ()
        try:
            kept = msgspec.msgpack.decode(self._path.read_bytes(), type=_Kept)
            sample = decode_sample(kept.sample)
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError, SampleError) as error:
            log.warning("the sample in %s cannot be read, another is made: %s", self._path, error)
            return ()
        is_same = kept.fingerprint == target.fingerprint and sample.target_model == target.name
        is_same = is_same and sample.tokenizer_fingerprint == target.tokenizer_fingerprint
        return tuple(sample.cases) if is_same else ()

    def _store(self, target: SampleTarget, sample: DraftSample) -> None:
        if self._path is None:
            return
        try:
            kept = _Kept(target.fingerprint, encode_sample(sample))
            self._path.write_bytes(msgspec.msgpack.encode(kept))
        except (OSError, ValueError) as error:
            log.warning("the sample cannot be kept in %s: %s", self._path, error)


def _sample(target: SampleTarget, cases: tuple[SampleCase, ...]) -> DraftSample | None:
    if not cases:
        return None
    return DraftSample(
        target_model=target.name,
        tokenizer_fingerprint=target.tokenizer_fingerprint,
        vocab_size=target.vocab_size,
        step_time_s=max(1e-6, target.step_time_s),
        cases=list(cases),
    )
