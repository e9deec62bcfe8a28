"""How often a draft model's first guess is what the target said, on the target's own tokens."""

import numpy as np
import numpy.typing as npt

from specedge_p2p.lm.ports import LanguageModel, Rows, SamplingParams
from specedge_p2p.overlay.sample import DraftSample, SampleCase

CHUNK_ROWS = 128
"""Rows of one forward; a sample is short, and the machine may be small."""
_SEQUENCE = -2


def first_guess_acceptance(model: LanguageModel, sample: DraftSample) -> float:
    """Share of the sample's tokens that the model would have guessed first, 0 to 1.

    One forward for some hundred tokens, not one for each: the target's tokens are known. What the
    model cannot hold is left out. Leaves the model as it was.
    """
    num_hits = num_tokens = 0
    for case in sample.cases:
        room = min(model.info.max_context, model.num_free_rows)
        hits = _hits(model, case, room)
        num_hits += int(hits.sum())
        num_tokens += len(hits)
    return num_hits / num_tokens if num_tokens else 0.0


def _hits(model: LanguageModel, case: SampleCase, room: int) -> npt.NDArray[np.bool_]:
    """Per token of the case whether it is the model's first guess."""
    prompt, tokens = case.prompt, case.tokens
    # The last token is guessed from the one before it and needs no row itself.
    token_ids = np.array([*prompt, *tokens[:-1]], dtype=np.int32)[:room]
    if int(token_ids.max()) >= model.info.vocab_size:
        return np.zeros(0, dtype=bool)
    model.add_sequence(_SEQUENCE, SamplingParams(case.temperature), case.noise_key)
    guesses: list[int] = []
    try:
        for start in range(0, len(token_ids), CHUNK_ROWS):
            chunk = token_ids[start : start + CHUNK_ROWS]
            positions = np.arange(start, start + len(chunk), dtype=np.int32)
            rows = Rows(_SEQUENCE, chunk, positions, None, len(chunk))
            (children,) = model.expand([rows], 1)
            guesses += children.token_ids[:, 0].tolist()
    finally:
        model.drop_sequence(_SEQUENCE)
    wanted = np.array(tokens, dtype=np.int32)
    guessed = np.array(guesses[len(prompt) - 1 :], dtype=np.int32)
    return np.equal(guessed, wanted[: len(guessed)])
