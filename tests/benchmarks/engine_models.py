"""The demo pair twice: behind the port, and as transformers gives it."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from specedge_p2p.demo.models import demo_path
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import Rows, TokenIds
from specedge_p2p.lm.runner import TransformersModel
from tests.simulator.traces import demo_book

TARGET, DRAFT = "demo-target", "demo-draft"
CACHE_ROWS = 16_384
PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """One model in both forms, float32 on one thread."""

    ours: TransformersModel
    plain: Any


@cache
def pair(name: str) -> Pair:
    ours = load_model(name, dtype="float32", device="cpu", cache_rows=CACHE_ROWS, threads=1)
    plain = AutoModelForCausalLM.from_pretrained(demo_path(name), dtype=torch.float32).eval()
    return Pair(ours, plain)


def prompts(count: int) -> list[list[int]]:
    """Different held-out prompts of the same length."""
    found = dict.fromkeys(trace.prompt_ids[:PROMPT_TOKENS] for trace in demo_book().traces)
    return [list(token_ids) for token_ids in list(found)[:count]]


def texts(count: int, num_tokens: int) -> list[list[int]]:
    """Different held-out prompts, each with what the target said to it, of the same length."""
    found = [trace.tokens for trace in demo_book().traces if trace.temperature > 0]
    return [list(tokens[:num_tokens]) for tokens in found if len(tokens) >= num_tokens][:count]


def context(num_tokens: int, seed: int) -> TokenIds:
    """Tokens to fill a cache with."""
    return np.random.default_rng(seed).integers(3, 4000, num_tokens).astype(np.int32)


@dataclass(frozen=True, slots=True)
class TreeShape:
    """A binary tree: parents stand before children, the root is row 0."""

    num_rows: int

    @property
    def parents(self) -> list[int]:
        return [(row - 1) // 2 for row in range(1, self.num_rows)]

    @property
    def depths(self) -> list[int]:
        return [(row + 1).bit_length() - 1 for row in range(self.num_rows)]

    @property
    def masks(self) -> list[int]:
        """By row, bit j says that the row sees row j."""
        masks = [1]
        for row, parent in enumerate(self.parents, 1):
            masks.append(masks[parent] | 1 << row)
        return masks

    def rows(self, sequence: int, start: int, token_ids: TokenIds) -> Rows:
        """Below `start` cached rows; every row has an output. At most 64 rows."""
        return Rows(
            sequence=sequence,
            token_ids=token_ids,
            positions=np.array(self.depths, np.int32) + start,
            visible=np.array(self.masks, np.uint64)[:, None],
            num_outputs=self.num_rows,
        )

    def bias(self, num_cached: int, heads_per_kv: int) -> torch.Tensor:
        """For attention scores of the same tree [1, 1, heads_per_kv * T, num_cached + T]."""
        seen = np.ones((self.num_rows, num_cached + self.num_rows), np.bool_)
        seen[:, num_cached:] = [
            [bool(mask >> row & 1) for row in range(self.num_rows)] for mask in self.masks
        ]
        bias = torch.zeros(seen.shape).masked_fill_(torch.from_numpy(~seen), float("-inf"))
        return bias.repeat(heads_per_kv, 1)[None, None]
