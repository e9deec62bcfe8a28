"""A random Llama of a few thousand weights: the model under test and its unmodified twin."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specedge_p2p.lm.ports import ModelInfo
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.lm.tree_attention import register_attention

VOCAB_SIZE = 61


def _build(attention: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation=attention,
    )
    torch.manual_seed(5)
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_llama(dtype: torch.dtype = torch.float64) -> Any:  # noqa: ANN401
    """The unmodified transformers model."""
    return _build("sdpa", dtype)


def tiny_runner(*, cache_rows: int = 4096, dtype: torch.dtype = torch.float64) -> TransformersModel:
    """The same weights behind the port."""
    name = str(dtype).removeprefix("torch.")
    info = ModelInfo("tiny", VOCAB_SIZE, 256, (1,), name, bytes(16))
    return TransformersModel(_build(register_attention(), dtype), info, cache_rows)
