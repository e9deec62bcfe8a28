"""Whether replayed and eager forwards choose what the arithmetic allows.

A small model of random weights, and the same weights in float64, which no kernel of ours computes.
Both ways must choose tokens that are possible up to rounding: `tests/support/near_ties.py`.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from specedge_p2p.lm.ports import Rows, SamplingParams
from specedge_p2p.lm.runner import TransformersModel
from tests.benchmarks.gpu_subject import GREEDY, Bench, Shape, chain, network_of, runner_of
from tests.support.near_ties import error_bound, possible_tokens

WARM = SamplingParams(temperature=0.8, top_k=40, top_p=0.95)
BATCHES = ((8, 33), (8, 9), (1, 33), (3, 1))
"""Sequences and rows of each."""
NUM_SEQUENCES = 8


@dataclass(frozen=True, slots=True)
class Ties:
    """Tokens compared, those in which the two ways differ, and those that rounding cannot explain.

    Args:
        num_impossible: of both ways together.
    """

    num_tokens: int = 0
    num_different: int = 0
    num_impossible: int = 0


def measure_ties(bench: Bench, shape: Shape) -> Ties:
    network = network_of(shape, bench)
    reference = deepcopy(network).double()
    cache_rows = NUM_SEQUENCES * (bench.context + 64)
    model = runner_of(network, shape, bench.dtype_name, cache_rows)
    exact = runner_of(reference, shape, "float64", cache_rows)
    for one in (model, exact):
        for i in range(NUM_SEQUENCES):
            one.add_sequence(i, _sampling(i), bytes([i]) * 16)
            one.choose([chain(i, 0, bench.context, causal=True)])
    replayed = _chosen(model, bench.context)
    if model._gpu is not None:
        model._gpu.give_up_graphs()
    eager = _chosen(model, bench.context)
    ties = Ties()
    for batch, *ways in zip(_batches(bench.context), replayed, eager, strict=True):
        ties = _compared(ties, exact, batch, ways, bench.dtype_name)
    return ties


def _sampling(sequence: int) -> SamplingParams:
    return WARM if sequence % 2 else GREEDY


def _batches(context: int) -> list[list[Rows]]:
    return [[chain(i, context, rows, causal=False) for i in range(n)] for n, rows in BATCHES]


def _chosen(model: TransformersModel, context: int) -> list[list[int]]:
    """Tokens of every batch, at the second time: the first one captures."""
    chosen = []
    for batch in _batches(context):
        model.choose(batch)
        _drop_tails(model, batch)
        chosen.append(np.concatenate(model.choose(batch)).tolist())
        _drop_tails(model, batch)
    return chosen


def _drop_tails(model: TransformersModel, batch: Sequence[Rows]) -> None:
    for rows in batch:
        model.compact(rows.sequence, ())


@torch.inference_mode()
def _compared(
    ties: Ties,
    exact: TransformersModel,
    batch: Sequence[Rows],
    ways: Sequence[Sequence[int]],
    dtype: str,
) -> Ties:
    logits = exact._forward(batch).cpu().numpy()
    _drop_tails(exact, batch)
    places = [(rows.sequence, int(p) + 1) for rows in batch for p in rows.positions]
    num_different = num_impossible = 0
    for (sequence, position), row, *tokens in zip(places, logits, *ways, strict=True):
        bound = error_bound(row, dtype)
        possible = possible_tokens(
            row, _sampling(sequence), bytes([sequence]) * 16, position, bound
        )
        num_different += tokens[0] != tokens[1]
        num_impossible += sum(not possible[token] for token in tokens)
    return Ties(
        ties.num_tokens + len(places),
        ties.num_different + num_different,
        ties.num_impossible + num_impossible,
    )
