"""Packed layers give what the plain ones give, and stay away from what must not change."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from specedge_p2p.lm.packed_linear import MIN_ELEMENTS, PackedLinear, pack_linears
from specedge_p2p.lm.ports import ModelInfo, Rows, SamplingParams
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.lm.tree_attention import register_attention

WIDTH = 512
assert WIDTH * WIDTH >= MIN_ELEMENTS


def linear(dtype: torch.dtype, *, has_bias: bool = True) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(WIDTH, WIDTH, bias=has_bias, dtype=dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 9, 300])
def test_a_packed_layer_equals_the_plain_one(
    dtype: torch.dtype, bound: float, has_bias: bool, num_rows: int
) -> None:
    plain = linear(dtype, has_bias=has_bias)
    rows = torch.randn(1, num_rows, WIDTH, dtype=dtype)
    model = nn.Sequential(plain)
    assert pack_linears(model) == 1
    with torch.inference_mode():
        expected = plain(rows)
        found = model(rows)
    assert isinstance(model[0], PackedLinear)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found - expected).abs().max() < bound
    assert expected.abs().max() > 10 * bound


def test_what_must_not_change_is_not_packed() -> None:
    hooked = linear(torch.float32)
    hooked.register_forward_pre_hook(lambda module, args: None)
    kept = nn.ModuleList(
        [
            linear(torch.float64),
            hooked,
            nn.Linear(8, 8),
            nn.Bilinear(WIDTH, WIDTH, 2),
        ]
    )
    assert pack_linears(kept) == 0


def _llama(attention: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    config = LlamaConfig(
        vocab_size=800,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    torch.manual_seed(5)
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.4)])
def test_a_model_of_packed_layers_gives_the_logits_of_the_plain_one(
    dtype: torch.dtype, bound: float
) -> None:
    """The head shares its weight with the embedding, which stays as it is."""
    model = _llama(register_attention(), dtype)
    info = ModelInfo("wide", 800, 2048, (1,), str(dtype), bytes(16))
    runner = TransformersModel(model, info, 64)
    assert isinstance(model.lm_head, PackedLinear)
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) >= 7
    runner.add_sequence(0, SamplingParams(temperature=0), bytes(16))
    tokens = np.random.default_rng(0).integers(2, 800, 30).astype(np.int32)
    with torch.inference_mode():
        found = runner._forward([Rows(0, tokens, np.arange(30, dtype=np.int32), None, 30)])
        expected = _llama("sdpa", dtype)(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    assert (found - expected).abs().max() < bound
    assert expected.abs().max() > 5 * bound
