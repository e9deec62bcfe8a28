"""Fused layers give the logits of the unmodified model, and only layers they know are fused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from specedge_p2p.lm.fused_layer import FusedLayer, fuse_layers
from specedge_p2p.lm.fused_model import fused_model
from specedge_p2p.lm.packed_linear import PackedLinear
from specedge_p2p.lm.ports import ModelInfo, Rows, SamplingParams
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.lm.tree_attention import register_attention

SIZES = {
    "vocab_size": 800,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
Make = Callable[[], PretrainedConfig]
FUSED: dict[str, Make] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES, use_sliding_window=False),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=48, use_sliding_window=False),
}
KEPT: dict[str, Make] = {
    "another activation": lambda: LlamaConfig(**SIZES, hidden_act="gelu"),
    "joined weights": lambda: Phi3Config(**SIZES),
    "scaled sums": lambda: AutoConfig.for_model("granite", **SIZES, residual_multiplier=0.5),
}


def build(make: Make, attention: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    torch.manual_seed(5)
    config = make()
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def runner(model: Any) -> TransformersModel:  # noqa: ANN401
    info = ModelInfo("wide", 800, 2048, (1,), "any", bytes(16))
    return TransformersModel(model, info, 128)


def logits_of(model: TransformersModel, tokens: np.ndarray) -> Tensor:
    """A chunk, then a chain of tree rows behind it."""
    model.add_sequence(0, SamplingParams(temperature=0), bytes(16))
    positions = np.arange(len(tokens), dtype=np.int32)
    first, rest = slice(0, 20), slice(20, None)
    num_rest = len(tokens) - 20
    chain = np.array([(2 << i) - 1 for i in range(num_rest)], np.uint64)[:, None]
    chunk = model._forward([Rows(0, tokens[first], positions[first], None, 20)])
    tree = model._forward([Rows(0, tokens[rest], positions[rest], chain, num_rest)])
    return torch.cat([chunk, tree])


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_law1_output_fused_logits_equal_those_of_the_unmodified_model(
    name: str, dtype: torch.dtype, bound: float
) -> None:
    model = build(FUSED[name], register_attention(), dtype)
    under_test = runner(model)
    assert all(isinstance(layer, FusedLayer) for layer in model.model.layers)
    assert under_test._fused is not None
    assert isinstance(model.lm_head, PackedLinear)
    tokens = np.random.default_rng(0).integers(2, 800, 30).astype(np.int32)
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.inference_mode():
        expected = build(FUSED[name], "sdpa", dtype)(ids).logits[0]
    found = logits_of(under_test, tokens)
    largest = expected.abs().max()
    assert (found - expected).abs().max() < bound * largest
    assert (found - expected.roll(1, 0)).abs().max() > 5 * bound * largest


@pytest.mark.parametrize("name", KEPT)
def test_layers_that_compute_something_else_stay_and_are_served(name: str) -> None:
    model = build(KEPT[name], register_attention(), torch.float32)
    under_test = runner(model)
    assert not any(isinstance(module, FusedLayer) for module in model.modules())
    assert under_test._fused is None
    tokens = np.random.default_rng(0).integers(2, 800, 30).astype(np.int32)
    with torch.inference_mode():
        expected = build(KEPT[name], "sdpa", torch.float32)(
            torch.from_numpy(tokens.astype(np.int64))[None]
        ).logits[0]
    assert (logits_of(under_test, tokens) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_float64_is_left_alone() -> None:
    model = build(FUSED["llama"], register_attention(), torch.float64)
    assert runner(model)._fused is None
    assert not any(isinstance(module, FusedLayer | PackedLinear) for module in model.modules())


def test_a_layer_that_gives_something_else_stays() -> None:
    """The parts are those of a Llama, but what is done with them is not."""
    model = build(FUSED["llama"], register_attention(), torch.float32)
    layer = model.model.layers[1]
    plain = layer.forward
    layer.forward = lambda *args, **kwargs: 1.01 * plain(*args, **kwargs)
    assert fuse_layers(model) == 1
    assert fused_model(model) is None


def test_a_model_that_changes_its_logits_is_run_by_itself() -> None:
    model = build(FUSED["llama"], register_attention(), torch.float32)
    assert fuse_layers(model) == 2
    assert fused_model(model) is not None
    model.config.final_logit_softcapping = 30.0
    assert fused_model(model) is None
    model.config.final_logit_softcapping = None
    model.model.embed_tokens.forward = lambda ids: (
        2 * nn.Embedding.forward(model.model.embed_tokens, ids)
    )
    assert fused_model(model) is None
