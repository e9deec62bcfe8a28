"""One forward of the demo pair: verification against one by hand, levels against bare ones."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from node.drafter import Drafter, DrafterSettings, DraftRequest
from specedge_p2p.lm.ports import Children, Rows, SamplingParams
from specedge_p2p.lm.wrapped import WrappedModel
from specedge_p2p.tree.growth import GrowthSettings
from tests.benchmarks.engine import EngineEffort, EngineFigures, EngineRow, at_most
from tests.benchmarks.engine_models import DRAFT, TARGET, TreeShape, context, pair, texts
from tests.benchmarks.handwritten import HandwrittenLlama
from tests.benchmarks.interleaved import interleaved

NUM_CONTEXT = 200
LEVEL_CONTEXT = 160
NUM_TEXTS = 64
SHAPES = ((1, 1), (8, 1), (8, 9), (8, 33))
LEVELS = ((1, 16), (4, 8), (8, 8))
"""Sessions and beam width, as nodes choose them."""
CHECKED = (8, 9)
NUM_FIRST_LEVELS = 3
"""Until a frontier is as wide as a level: the prompt, its children, theirs."""
GREEDY, SAMPLED = SamplingParams(temperature=0.0), SamplingParams(temperature=0.7)
KEY = bytes(range(16))


class Verification:
    """The same batch of trees through the port and by hand; whole, tokens chosen."""

    def __init__(self, num_sequences: int, num_rows: int) -> None:
        target = pair(TARGET)
        self._ours, shape = target.ours, TreeShape(num_rows)
        self._by_hand = HandwrittenLlama(target.plain, num_sequences, NUM_CONTEXT + num_rows)
        config = target.plain.config
        heads_per_kv = config.num_attention_heads // config.num_key_value_heads
        texts = [context(NUM_CONTEXT + num_rows, seed) for seed in range(num_sequences)]
        chain = torch.full((NUM_CONTEXT, NUM_CONTEXT), float("-inf")).triu_(1)
        self._rows = []
        for number, text in enumerate(texts):
            self._ours.add_sequence(number, GREEDY, KEY)
            positions = np.arange(NUM_CONTEXT, dtype=np.int32)
            self._ours.choose([Rows(number, text[:NUM_CONTEXT], positions, None, 0)])
            self._rows.append(shape.rows(number, NUM_CONTEXT, text[NUM_CONTEXT:]))
        ids = torch.from_numpy(np.stack(texts).astype(np.int64))
        self._by_hand.forward(
            ids[:, :NUM_CONTEXT],
            torch.arange(NUM_CONTEXT).expand(num_sequences, -1),
            0,
            chain.repeat(heads_per_kv, 1)[None, None],
        )
        self._ids = ids[:, NUM_CONTEXT:]
        depths = torch.tensor(shape.depths) + NUM_CONTEXT
        self._positions = depths.expand(num_sequences, -1)
        self._bias = shape.bias(NUM_CONTEXT, heads_per_kv)

    def ours(self) -> list[int]:
        """Choices after all rows; the rows are taken out again."""
        chosen = np.concatenate(self._ours.choose(self._rows))
        for rows in self._rows:
            self._ours.compact(rows.sequence, ())
        tokens: list[int] = chosen.tolist()
        return tokens

    def by_hand(self) -> list[int]:
        logits = self._by_hand.forward(self._ids, self._positions, NUM_CONTEXT, self._bias)
        tokens: list[int] = logits.numpy().argmax(-1).ravel().tolist()
        return tokens

    def close(self) -> None:
        for rows in self._rows:
            self._ours.drop_sequence(rows.sequence)


def verification_section(effort: EngineEffort) -> EngineFigures:
    """Whole verifications, tokens chosen, on `NUM_CONTEXT` cached rows."""
    figures = EngineFigures((), ())
    for num_sequences, num_rows in SHAPES:
        verification = Verification(num_sequences, num_rows)
        if verification.ours() != verification.by_hand():
            raise RuntimeError("the hand-written forward chose other tokens")
        times = interleaved(
            {"ours": verification.ours, "hand": verification.by_hand}, effort.num_repeats
        )
        verification.close()
        size = f"{num_sequences}x{num_rows}"
        ratio = times.ratio("ours", "hand")
        figures += EngineFigures(
            (
                EngineRow(f"by hand {size}", 1000 * times.median_s("hand")),
                EngineRow(
                    f"verify {size}", 1000 * times.median_s("ours"), f"by hand {size}", ratio
                ),
            ),
            ()
            if (num_sequences, num_rows) != CHECKED
            else (
                at_most(
                    f"cpu/verify-{size}",
                    ratio,
                    1.15,
                    "time against a forward by hand on fused, prepacked weights",
                    times.spread("ours", "hand"),
                ),
            ),
        )
    return figures


class Recorded(WrappedModel):
    """Remembers the last expansion, so that it can be made again."""

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        self._last = batch, branch_width
        return super().expand(batch, branch_width)

    def repeat(self) -> list[Children]:
        batch, branch_width = self._last
        for rows in batch:
            num_before = self.num_tail_rows(rows.sequence) - len(rows.token_ids)
            self.compact(rows.sequence, (), range(num_before))
        return super().expand(batch, branch_width)


class DraftLevel:
    """Levels of a node's drafter, its forward alone, and the bare forward of as many rows."""

    def __init__(self, num_sessions: int, beam_width: int) -> None:
        draft = pair(DRAFT)
        self._num_rows = num_sessions * beam_width
        growth = GrowthSettings(beam_width=beam_width)
        self._forward = Recorded(draft.ours)
        self._drafter = Drafter(
            self._forward, DrafterSettings(growth, prefill_rows=4096, has_early_stop=False)
        )
        every = texts(NUM_TEXTS, LEVEL_CONTEXT)
        wide = [text for text in every if self._num_rows_of(text) == beam_width]
        self._texts = wide[:num_sessions]
        self._plain = draft.plain
        self._cache = DynamicCache(config=draft.plain.config)
        ids = torch.tensor(self._texts)
        with torch.inference_mode():
            self._plain(ids, past_key_values=self._cache, logits_to_keep=1)
        shape = TreeShape(beam_width)
        self._ids = ids[:, :beam_width].contiguous()
        self._positions = (torch.tensor(shape.depths) + LEVEL_CONTEXT).expand(num_sessions, -1)
        self._mask = shape.bias(LEVEL_CONTEXT, 1).expand(num_sessions, -1, -1, -1)

    def prepare(self) -> None:
        """Open all sessions anew and grow them until their frontiers are wide enough."""
        self._open(self._texts)

    def _num_rows_of(self, text: list[int]) -> int:
        """Of this session's level when it is alone: some texts leave little to guess."""
        self._open([text])
        num_rows = self._drafter.level().num_rows
        self.close()
        return num_rows

    def _open(self, chosen: Sequence[list[int]]) -> None:
        self.close()
        for number, text in enumerate(chosen):
            request = DraftRequest(text, SAMPLED, KEY, max_position=2000, vocab_size=4096)
            self._drafter.open(number, request)
        for _ in range(NUM_FIRST_LEVELS):
            self._drafter.level()

    def level(self) -> None:
        done = self._drafter.level()
        if done.num_rows != self._num_rows:
            raise RuntimeError(f"a level of {done.num_rows} rows, {self._num_rows} wanted")

    def expand(self) -> None:
        """The last level's forward again, its rows taken out first."""
        self._forward.repeat()

    @torch.inference_mode()
    def bare(self) -> None:
        """Logits of as many rows by transformers' own model and cache; nothing is chosen."""
        self._plain(
            input_ids=self._ids,
            position_ids=self._positions,
            attention_mask=self._mask,
            past_key_values=self._cache,
        )
        self._cache.crop(-self._ids.shape[1])

    def close(self) -> None:
        for number in self._drafter.session_nos:
            self._drafter.close(number)


def level_section(effort: EngineEffort) -> EngineFigures:
    """Whole levels of a drafter: planning, forward, ranking and growth."""
    figures = EngineFigures((), ())
    for num_sessions, beam_width in LEVELS:
        size = f"{num_sessions}x{beam_width}"
        level = DraftLevel(num_sessions, beam_width)
        times = interleaved(
            {"level": level.level, "expand": level.expand, "bare": level.bare},
            effort.num_repeats,
            level.prepare,
        )
        level.close()
        ratio = times.ratio("level", "bare")
        figures += EngineFigures(
            (
                EngineRow(f"bare draft forward {size}", 1000 * times.median_s("bare")),
                EngineRow(
                    f"draft level {size}",
                    1000 * times.median_s("level"),
                    f"bare draft forward {size}",
                    ratio,
                ),
                EngineRow(
                    f"draft level {size}, forward and ranking alone",
                    1000 * times.median_s("expand"),
                    f"bare draft forward {size}",
                    times.ratio("expand", "bare"),
                ),
            ),
            (
                at_most(
                    f"cpu/level-{size}",
                    ratio,
                    1.25,
                    "time against the bare transformers forward of as many rows",
                    times.spread("level", "bare"),
                ),
            ),
        )
    return figures
