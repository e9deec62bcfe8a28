"""A tensor-parallel leader in a process of its own: plays a script of calls, prints what it chose.

Arguments: the settings as JSON, then "play", "refuse", "lose" or "fail".
"""

import json
import os
import signal
import sys
from typing import Any

import msgspec
import numpy as np

from specedge_p2p.lm.fused_layer import FusedLayer
from specedge_p2p.lm.packed_linear import PackedLinear
from specedge_p2p.lm.parallel import ParallelModel, ParallelSettings, load_parallel
from specedge_p2p.lm.ports import (
    LanguageModel,
    ModelError,
    OutOfCache,
    Rows,
    SamplingParams,
    TokenIds,
)
from specedge_p2p.lm.prefix import PrefixNames

WARM = SamplingParams(temperature=0.8, top_k=40, top_p=0.95)
GREEDY = SamplingParams(temperature=0.0)
LOST = 9


def play(model: LanguageModel, num_rounds: int = 6) -> list[list[int]]:
    """Chunks, trees and plain rows of three sequences in ragged batches; all that was chosen.

    A fourth one begins with the pages of the first.
    """
    rng = np.random.default_rng(3)
    vocab = model.info.vocab_size
    lengths = [37, 5, 16]
    prompts: list[TokenIds] = []
    for sequence, length in enumerate(lengths):
        model.add_sequence(sequence, (WARM, GREEDY, WARM)[sequence], bytes([sequence]) * 16)
        prompt = rng.integers(3, vocab, length).astype(np.int32)
        prompts.append(prompt)
        model.choose([chunk(sequence, prompt[: length // 2], 0, 0)])
        model.choose([chunk(sequence, prompt[length // 2 :], length // 2, 0)])
    shared = prompts[0]
    names = PrefixNames("salt", model.cache.page_rows).of(shared.tolist(), len(shared))
    model.share_prefix(0, names)
    said = []
    for round_no in range(num_rounds):
        batch = [
            tree(0, rng.integers(3, vocab, 7), lengths[0]),
            tree(1, rng.integers(3, vocab, 1), lengths[1]),
            chunk(2, rng.integers(3, vocab, 3 + round_no).astype(np.int32), lengths[2], 2),
        ]
        if round_no % 2:
            said += [kids.token_ids.ravel().tolist() for kids in model.expand(batch, 3)]
        else:
            said += [tokens.tolist() for tokens in model.choose(batch)]
        model.compact(0, [0, 2], [5] if round_no == num_rounds - 1 else [])
        model.compact(1, [0])
        lengths = [lengths[0] + 2, lengths[1] + 1, lengths[2] + 3 + round_no]
    model.drop_sequence(1)
    model.add_sequence(3, GREEDY, bytes(16))
    num_known = model.adopt_prefix(3, names)
    [tokens] = model.choose([chunk(3, shared[num_known:], num_known, 1)])
    return [*said, [num_known], tokens.tolist()]


def chunk(sequence: int, token_ids: np.ndarray, first: int, num_outputs: int) -> Rows:
    positions = np.arange(first, first + len(token_ids), dtype=np.int32)
    return Rows(sequence, token_ids.astype(np.int32), positions, None, num_outputs)


def tree(sequence: int, token_ids: np.ndarray, first: int) -> Rows:
    """Row i hangs below row (i - 1) // 2."""
    paths: list[int] = []
    for i in range(len(token_ids)):
        paths.append((paths[(i - 1) // 2] if i else 0) | 1 << i)
    depths = [path.bit_count() - 1 for path in paths]
    positions = np.array(depths, np.int32) + first
    visible = np.array(paths, np.uint64)[:, None]
    return Rows(sequence, token_ids.astype(np.int32), positions, visible, len(token_ids))


def refused(model: ParallelModel) -> list[list[int]]:
    """What the port forbids, and a cache that is too small, on all ranks; then the script."""
    model.add_sequence(7, GREEDY, bytes(16))
    full = np.full(model.num_free_rows + 1, 5, np.int32)
    for rows, error in ((chunk(7, full[:5], 3, 1), ValueError), (chunk(7, full, 0, 1), OutOfCache)):
        try:
            model.choose([rows])
        except error:
            continue
        raise AssertionError("it was not refused")
    model.drop_sequence(7)
    return play(model)


def lose(model: ParallelModel) -> list[list[int]]:
    """A follower dies while the model works; `leave` must end this process."""
    model.add_sequence(7, GREEDY, bytes(16))
    os.kill(model.followers.pids[0], signal.SIGKILL)
    while True:
        model.choose([tree(7, np.arange(3, 6), 0)])
        model.compact(7, [])


def fail(model: ParallelModel) -> list[list[int]]:
    """A forward fails in the leader alone, after the others have been told of it."""
    share = model._model
    share.choose = broken  # type: ignore[method-assign]
    return play(model)


def broken(batch: object) -> list[np.ndarray]:
    raise RuntimeError(f"injected: {len(str(batch)) > 0}")


def num_replaced(model: ParallelModel) -> int:
    """Layers and products of rank 0 that something made for one CPU stands for."""
    share: Any = model._model
    kinds = (FusedLayer, PackedLinear)
    return sum(isinstance(module, kinds) for module in share._model.modules())


def leave(text: str) -> None:
    sys.stdout.write(json.dumps({"lost": text}) + "\n")
    sys.stdout.flush()
    os._exit(LOST)


def main() -> None:
    settings = msgspec.json.decode(sys.argv[1], type=ParallelSettings)
    scripts = {"play": play, "refuse": refused, "lose": lose, "fail": fail}
    try:
        model = load_parallel(settings, leave)
    except ModelError as error:
        print(json.dumps({"error": str(error)}))
        return
    ready = {
        "pids": model.followers.pids,
        "rows": model.num_free_rows,
        "context": model.info.max_context,
        "replaced": num_replaced(model),
    }
    print(json.dumps(ready), flush=True)
    print(json.dumps({"said": scripts[sys.argv[2]](model)}))


if __name__ == "__main__":
    main()
