"""Random models of a few thousand weights, one per model family, and their unmodified twins."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB_SIZE = 61
MAX_CONTEXT = 256
WINDOW = 7
"""Short, so that prompts, chunks and trees all outgrow it."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 128,
}

FAMILIES: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_COMMON, **_GROUPED, tie_word_embeddings=False),
    "llama-tied": lambda: LlamaConfig(**_COMMON, **_GROUPED, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_COMMON, num_key_value_heads=2, tie_word_embeddings=False),
    "qwen2-windows": lambda: Qwen2Config(
        **_COMMON,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "qwen3": lambda: Qwen3Config(**_COMMON, **_GROUPED, tie_word_embeddings=False),
    "qwen3-tied": lambda: Qwen3Config(**_COMMON, **_GROUPED, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_COMMON, **_GROUPED, sliding_window=None),
    "mistral-window": lambda: MistralConfig(
        **_COMMON, **_GROUPED, sliding_window=WINDOW, tie_word_embeddings=True
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_COMMON,
        **_GROUPED,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=12,
        final_logit_softcapping=30.0,
    ),
    "gemma3-untied": lambda: Gemma3TextConfig(
        **_COMMON,
        **_GROUPED,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        tie_word_embeddings=False,
    ),
    "phi3": lambda: Phi3Config(**_COMMON, num_key_value_heads=2, tie_word_embeddings=False),
    "phi3-longrope-window": lambda: Phi3Config(
        **_COMMON,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        tie_word_embeddings=True,
        original_max_position_embeddings=128,
        rope_parameters=_LONGROPE,
    ),
    "gpt-neox": lambda: GPTNeoXConfig(**_COMMON, tie_word_embeddings=False),
    "gpt-neox-tied": lambda: GPTNeoXConfig(
        **_COMMON, tie_word_embeddings=True, use_parallel_residual=False
    ),
}

MIXTURES: Mapping[str, Callable[[], Any]] = {
    "mixtral-window": lambda: MixtralConfig(
        **_COMMON, **_GROUPED, num_local_experts=4, sliding_window=WINDOW
    ),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **_COMMON, **_GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
}
"""Mixtures of experts. Rounding that moves a row to another expert moves its logits by more than
any bound, so these are only compared in float64."""


def save_tiny(family: str, folder: Path) -> Path:
    """Write the family's random model in the hub's format, float32."""
    torch.manual_seed(5)
    config = {**FAMILIES, **MIXTURES}[family]()
    model: Any = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.ndim == 1:  # norms and biases start as ones and zeros, which hide mistakes
            weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


def plain_twin(folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The unmodified transformers model, its weights rounded to `dtype`, in float64 arithmetic."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation="eager"
    )
    return model.to(torch.float64).eval()
