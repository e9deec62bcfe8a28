"""The plain decoder that everything must equal: one token at a time on the unmodified model."""

import numpy as np
import torch

from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.noise import NoiseKey, gumbel


@torch.inference_mode()
def decode(
    model: torch.nn.Module,
    prompt_ids: list[int],
    sampling: SamplingParams,
    key: NoiseKey,
    max_tokens: int,
    eos_token_ids: tuple[int, ...] = (),
) -> list[int]:
    """Greedy or noise-sampled decoding without filters, in float64; recomputes every prefix."""
    ids = list(prompt_ids)
    while len(ids) - len(prompt_ids) < max_tokens and not (
        len(ids) > len(prompt_ids) and ids[-1] in eos_token_ids
    ):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()
        if sampling.temperature > 0:
            noise = gumbel(key, len(ids), np.arange(logits.size))
            logits = logits / sampling.temperature + noise
        ids.append(int(np.argmax(logits)))
    return ids[len(prompt_ids) :]
