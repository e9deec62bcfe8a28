"""Whole generations on the demo pair: the engine's steps against transformers' `generate`."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import CloseSession, LevelTerms
from specedge_p2p.lm.ports import LanguageModel
from tests.benchmarks.engine import EngineEffort, EngineFigures, EngineRow, at_least
from tests.benchmarks.engine_models import DRAFT, TARGET, pair, prompts
from tests.benchmarks.interleaved import interleaved
from tests.support.engine import batch, open_session

TREES = ((1, 2), (2, 1), (3, 1), (4, 1), (5, 1), (2, 2), (3, 2), (4, 2))
"""Levels and width of the engine's own trees."""


class Generator:
    """An engine of its own; every call runs some prompts to their end, all in every step."""

    def __init__(self, model: LanguageModel, num_tokens: int, draft: LanguageModel | None) -> None:
        self._core = EngineCore(model, time.monotonic, draft=draft)
        self._num_tokens = num_tokens
        self._last = 0

    def run(self, texts: Sequence[Sequence[int]], tree: tuple[int, int] | None) -> list[list[int]]:
        """The new tokens of every text, greedy.

        Args:
            texts: prompts.
            tree: levels and width of fixed own trees; None for plain rows.
        """
        numbers = range(self._last + 1, self._last + 1 + len(texts))
        self._last = numbers[-1]
        for number, text in zip(numbers, texts, strict=True):
            self._core.handle(
                open_session(number, text, max_tokens=self._num_tokens, ignore_eos=True)
            )
        found: dict[int, list[int]] = {number: [] for number in numbers}
        live = list(numbers)
        while live:
            step = batch(
                live,
                max_rows=0 if tree is None else tree[0] * tree[1],
                hit_rates=(),
                levels=None if tree is None else _terms(*tree),
            )
            for result in self._core.step(step).results:
                found[result.session] += result.token_ids
                if result.finish:
                    live.remove(result.session)
        for number in numbers:
            self._core.handle(CloseSession(number))
        return [found[number] for number in numbers]


def _terms(num_levels: int, width: int) -> LevelTerms:
    return LevelTerms(0.0, 0.0, 0.0, 1.0, max_levels=num_levels, width=width, is_fixed=True)


class PlainGenerator:
    """The same by the unmodified model's `generate`."""

    def __init__(self, model: Any, num_tokens: int, assistant: Any = None) -> None:  # noqa: ANN401
        self._model = model
        self._assistant = assistant
        model.generation_config.eos_token_id = None
        self._config = GenerationConfig(
            do_sample=False, max_new_tokens=num_tokens, eos_token_id=None, pad_token_id=2
        )

    @torch.inference_mode()
    def run(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        ids = torch.tensor([list(text) for text in texts])
        extra = {} if self._assistant is None else {"assistant_model": self._assistant}
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=self._config,
            **extra,
        )
        new: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return new


def plain_section(effort: EngineEffort) -> EngineFigures:
    """One session and eight without any guesses."""
    target = pair(TARGET)
    ours = Generator(target.ours, effort.num_tokens, None)
    plain = PlainGenerator(target.plain, effort.num_tokens)
    figures = EngineFigures((), ())
    for num_sessions, bound in ((1, 1.1), (8, 1.4)):
        texts = prompts(num_sessions)

        def run_ours(texts: Sequence[Sequence[int]] = texts) -> None:
            ours.run(texts, None)

        def run_plain(texts: Sequence[Sequence[int]] = texts) -> None:
            plain.run(texts)

        times = interleaved(
            {"engine": run_ours, "generate": run_plain}, 3 * effort.num_long_repeats
        )
        names = f"engine, {num_sessions} plain", f"transformers generate, {num_sessions}"
        num = effort.num_tokens
        figures += EngineFigures(
            (
                EngineRow(names[1], 1000 * times.median_s("generate") / num),
                EngineRow(
                    names[0],
                    1000 * times.median_s("engine") / num,
                    names[1],
                    times.ratio("engine", "generate"),
                ),
            ),
            (
                at_least(
                    f"cpu/plain-{num_sessions}",
                    times.ratio("generate", "engine"),
                    bound,
                    "tokens/s against transformers' generate",
                    times.spread("generate", "engine"),
                ),
            ),
        )
    return figures


def speculation_section(effort: EngineEffort) -> EngineFigures:
    """One session at a time, the draft model beside the target."""
    target, draft = pair(TARGET), pair(DRAFT)
    ours = Generator(target.ours, effort.num_tokens, draft.ours)
    assisted = PlainGenerator(target.plain, effort.num_tokens, draft.plain)
    texts = prompts(effort.num_prompts)

    def run_assisted() -> None:
        for text in texts:
            assisted.run([text])

    def run_tree(tree: tuple[int, int]) -> None:
        for text in texts:
            ours.run([text], tree)

    actions = {"assisted": run_assisted}
    for tree in TREES:
        actions[_tree_name(tree)] = lambda tree=tree: run_tree(tree)  # type: ignore[misc]
    times = interleaved(actions, effort.num_long_repeats)
    per_token = 1000 / (effort.num_tokens * len(texts))
    name = "transformers assisted generation, 1"
    rows = [EngineRow(name, times.median_s("assisted") * per_token)]
    rows += [
        EngineRow(
            _tree_name(tree),
            times.median_s(_tree_name(tree)) * per_token,
            name,
            times.ratio(_tree_name(tree), "assisted"),
        )
        for tree in TREES
    ]
    best = min(rows[1:], key=lambda row: row.ratio)
    check = at_least(
        "cpu/speculation",
        times.ratio("assisted", best.name),
        1.4,
        f"{best.name} against {name}",
        times.spread("assisted", best.name),
    )
    return EngineFigures(tuple(rows), (check,))


def _tree_name(tree: tuple[int, int]) -> str:
    return f"engine, 1 with own trees of {tree[0]} levels, {tree[1]} wide"
