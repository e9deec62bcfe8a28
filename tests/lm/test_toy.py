"""The toy model's own promises; `test_port.py` holds what it shares with the real runner."""

import dataclasses

import numpy as np
import pytest

from specedge_p2p.lm.ports import OutOfCache, Rows, SamplingParams
from specedge_p2p.lm.toy import ToyModel, ToyParams, ToyText, toy_decode

KEY = bytes(range(16))
SAMPLING = SamplingParams(temperature=0.8)


def causal(sequence: int, token_ids: list[int], start: int = 0) -> Rows:
    positions = np.arange(start, start + len(token_ids), dtype=np.int32)
    return Rows(sequence, np.array(token_ids, np.int32), positions, None, 1)


def test_plain_decoding_equals_the_reference() -> None:
    params = ToyParams(eos_bias=0.0)
    model = ToyModel(params)
    for seed in range(20):
        key = bytes([seed]) * 16
        model.add_sequence(seed, SAMPLING, key)
        tokens: list[int] = []
        rows = [0, 5, 6, 7]
        start = 0
        while len(tokens) < 30 and 1 not in tokens:
            [[token]] = model.choose([causal(seed, rows, start)])
            start, rows = start + len(rows), [int(token)]
            tokens.append(int(token))
        assert tokens == toy_decode(params, [0, 5, 6, 7], SAMPLING, key, 30)


def agreement(perturbation: float) -> float:
    """Share of 300 greedy tokens on which a perturbed model agrees."""
    params = ToyParams(eos_bias=-60.0)
    tokens = [0, 3, *toy_decode(params, [0, 3], SAMPLING, KEY, 300)]
    choices = []
    for value in (0.0, perturbation):
        model = ToyModel(dataclasses.replace(params, perturbation=value))
        model.add_sequence(0, SamplingParams(temperature=0), KEY)
        choices.append(model.choose([dataclasses.replace(causal(0, tokens), num_outputs=300)])[0])
    return float((choices[0] == choices[1]).mean())


def test_perturbation_sets_how_often_a_draft_agrees() -> None:
    assert agreement(0.0) == 1
    assert 0.62 < agreement(0.8) < 0.8
    assert agreement(2.5) < 0.4


def tree(sequence: int, positions: list[int], visible: list[int]) -> Rows:
    tokens = np.full(len(positions), 4, np.int32)
    masks = np.array(visible, np.uint64)[:, None]
    return Rows(sequence, tokens, np.array(positions, np.int32), masks, len(positions))


def test_mask_position_and_order_change_the_outcome() -> None:
    model = ToyModel(strict=False)
    for sequence in range(4):
        model.add_sequence(sequence, SAMPLING, KEY)
        model.choose([causal(sequence, [0, 5])])
    [[*good], [*mask], [*shifted], [*again]] = [
        [children.log_probs[2, 0] for _ in range(1)]
        for children in model.expand(
            [
                tree(0, [2, 3, 4], [0b1, 0b11, 0b111]),
                tree(1, [2, 3, 4], [0b1, 0b11, 0b101]),
                tree(2, [2, 3, 5], [0b1, 0b11, 0b111]),
                tree(3, [2, 3, 4], [0b1, 0b11, 0b111]),
            ],
            4,
        )
    ]
    assert good == again
    assert good != mask
    assert good != shifted


def test_strict_models_refuse_gaps() -> None:
    model = ToyModel()
    model.add_sequence(0, SAMPLING, KEY)
    model.choose([causal(0, [0, 5])])
    with pytest.raises(ValueError, match="position 4"):
        model.choose([tree(0, [2, 3, 4], [0b1, 0b11, 0b101])])
    assert model.num_tail_rows(0) == 0


def test_law7_bounded_toy_cache_refuses_before_it_writes() -> None:
    model = ToyModel(cache_rows=6)
    model.add_sequence(0, SAMPLING, KEY)
    model.add_sequence(1, SAMPLING, KEY)
    with pytest.raises(OutOfCache):
        model.choose([causal(0, [0, 5, 6]), causal(1, [0, 5, 6, 7])])
    assert model.num_prefix_rows(0) == 0
    model.choose([causal(0, [0, 5, 6]), causal(1, [0, 5, 6])])
    assert model.num_free_rows == 0
    model.drop_sequence(0)
    model.drop_sequence(0)
    assert model.num_free_rows == 3


def test_text_round_trip() -> None:
    text = ToyText(40)
    assert text.decode(text.encode("hello, world.")) == "hello, world."
    assert text.encode_chat([{"role": "user", "content": "ab"}])[1:3] == text.encode("ab")[1:]
    assert max(text.encode("\x00zZ9")) < 40
    assert ToyText(5000).decode([4999]) != ToyText(5000).decode([4998])
    assert ToyText(40).fingerprint() != ToyText(41).fingerprint()
