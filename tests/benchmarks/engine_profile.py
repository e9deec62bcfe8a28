"""Where the time of a step goes: host, planning, forward, attention, sampling, idle.

The forward is that of the transformers model with the attention in it; sampling is from logits to
token ids. Host is all the rest that the engine does between taking a batch and giving its results,
planning included: what the model needs to know of trees and pages before it starts.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from coordinator.engine.core import EngineCore
from specedge_p2p.lm import runner
from specedge_p2p.lm import sampling as sampler
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.tree_attention import PagedAttention
from tests.benchmarks.engine import EngineEffort, EngineFigures, EngineRow, at_most
from tests.benchmarks.engine_models import TARGET, TreeShape, context, pair
from tests.support.engine import batch, open_session, vertices

NUM_SESSIONS = 8
NUM_ROWS = 9
NUM_CONTEXT = 200
MAX_TOKENS = 1500
BOUND = 0.10


@dataclass(slots=True)
class Stopwatch:
    """Seconds of this thread's processor by what it did, over all steps."""

    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            with self.span(name):
                return action(*args, **kwargs)

        return run

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        begun = time.thread_time()
        try:
            yield
        finally:
            spent = time.thread_time() - begun
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Milliseconds of one step, on average."""

    step_ms: float
    forward_ms: float
    attention_ms: float
    planning_ms: float
    sampling_ms: float
    idle_ms: float

    @property
    def host_ms(self) -> float:
        return self.step_ms - self.forward_ms - self.sampling_ms

    @property
    def host_share(self) -> float:
        return self.host_ms / self.step_ms


class Verifying:
    """An engine whose sessions get a new tree before every step, as from one node each."""

    def __init__(self, sampling: SamplingParams) -> None:
        self._core = EngineCore(pair(TARGET).ours, time.monotonic)
        self._numbers = range(1, NUM_SESSIONS + 1)
        self._tree_no = 0
        self._draw = np.random.default_rng(0)
        for number in self._numbers:
            prompt = context(NUM_CONTEXT, number).tolist()
            self._core.handle(
                open_session(
                    number, prompt, max_tokens=MAX_TOKENS, sampling=sampling, ignore_eos=True
                )
            )
        self._core.step(batch(self._numbers, prefill_tokens=NUM_SESSIONS * NUM_CONTEXT))

    def feed(self) -> None:
        """What arrives between two steps: a tree per session."""
        self._tree_no += 1
        shape = TreeShape(NUM_ROWS)
        for number in self._numbers:
            session = self._core.session(number)
            assert session is not None
            self._core.handle(
                vertices(
                    number,
                    number,
                    len(session.token_ids),
                    self._draw.integers(3, 4000, NUM_ROWS - 1).tolist(),
                    parents=shape.parents,
                    tree_no=self._tree_no,
                )
            )

    def step(self) -> None:
        done = self._core.step(
            batch(self._numbers, max_rows=NUM_ROWS - 1, sources=list(self._numbers), hit_rates=())
        )
        if done.num_forward_rows != NUM_SESSIONS * NUM_ROWS:
            raise RuntimeError(f"a step of {done.num_forward_rows} rows")

    def close(self) -> None:
        for number in self._numbers:
            pair(TARGET).ours.drop_sequence(number)


def profile_steps(sampling: SamplingParams, num_steps: int) -> StepProfile:
    verifying, watch = Verifying(sampling), Stopwatch()
    verifying.feed()
    verifying.step()
    model = pair(TARGET).ours
    patches = [
        mock.patch.object(model, "_logits", watch.timed("forward", model._logits)),
        mock.patch.object(runner, "choose_tokens", watch.timed("sampling", sampler.choose_tokens)),
        mock.patch.object(
            PagedAttention, "attend", watch.timed("attention", PagedAttention.attend)
        ),
        mock.patch.object(
            PagedAttention, "__init__", watch.timed("planning", PagedAttention.__init__)
        ),
    ]
    wall_s = 0.0
    for patch in patches:
        patch.start()
    try:
        for _ in range(num_steps):
            verifying.feed()
            begun = time.perf_counter()
            with watch.span("step"):
                verifying.step()
            wall_s += time.perf_counter() - begun
    finally:
        for patch in patches:
            patch.stop()
        verifying.close()
    ms = {name: 1000 * seconds / num_steps for name, seconds in watch.seconds.items()}
    return StepProfile(
        ms["step"],
        ms["forward"],
        ms["attention"],
        ms["planning"],
        ms["sampling"],
        max(0.0, 1000 * wall_s / num_steps - ms["step"]),
    )


def host_section(effort: EngineEffort) -> EngineFigures:
    """Steps of eight sessions with nine rows each, greedy and sampled."""
    figures = EngineFigures((), ())
    for temperature in (0.0, 0.7):
        found = profile_steps(SamplingParams(temperature=temperature), effort.num_repeats)
        name = f"step {NUM_SESSIONS}x{NUM_ROWS} at temperature {temperature:g}"
        parts = {
            "host": found.host_ms,
            "of it planning": found.planning_ms,
            "forward": found.forward_ms,
            "of it attention": found.attention_ms,
            "sampling": found.sampling_ms,
            "idle beside it": found.idle_ms,
        }
        rows = [EngineRow(name, found.step_ms)]
        rows += [
            EngineRow(f"  {part}", value, name, value / found.step_ms)
            for part, value in parts.items()
        ]
        figures += EngineFigures(tuple(rows), ())
        if not temperature:
            check = at_most("cpu/host-share", found.host_share, BOUND, f"of a {name}")
            figures += EngineFigures((), (check,))
    return figures
