"""A Llama's forward written by hand: fused, prepacked weights and a dense cache without pages.

The bound of what the engine can reach on a CPU with the same matrix products. It knows one shape of
batch: sequences of equal length, each with as many new rows as the others.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from specedge_p2p.lm.packed_linear import MIN_ELEMENTS, Product


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer: query, key and value as one product, gate and up as another."""

    first_norm: Tensor
    qkv: "_Product"
    out: "_Product"
    second_norm: Tensor
    gate_up: "_Product"
    down: "_Product"


class _Product:
    """One or several linear layers as one, packed where that pays."""

    def __init__(self, *layers: nn.Linear) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self._weight = weight
        self._packed: Product | None = None
        if weight.numel() >= MIN_ELEMENTS:
            whole = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
            whole.weight = nn.Parameter(weight, requires_grad=False)
            self._packed = Product(whole)

    def __call__(self, rows: Tensor) -> Tensor:
        return linear(rows, self._weight) if self._packed is None else self._packed(rows)


class HandwrittenLlama:
    """An unmodified `LlamaForCausalLM` without biases, computed by hand.

    Args:
        model: gives the weights.
        num_sequences: of every batch.
        num_rows: most rows of a sequence.
    """

    def __init__(self, model: Any, num_sequences: int, num_rows: int) -> None:  # noqa: ANN401
        config = model.config
        self._eps = config.rms_norm_eps
        self._num_heads = config.num_attention_heads
        self._num_kv_heads = config.num_key_value_heads
        self._dim = config.head_dim
        self._embedding = model.model.embed_tokens.weight.detach()
        self._layers = [_layer(layer) for layer in model.model.layers]
        self._norm = model.model.norm.weight.detach()
        self._head = _Product(model.lm_head)
        cos, sin = model.model.rotary_emb(self._embedding, torch.arange(num_rows)[None])
        self._cos, self._sin = cos[0], sin[0]
        shape = (len(self._layers), num_sequences, self._num_kv_heads, num_rows, self._dim)
        self._keys = torch.zeros(shape, dtype=self._embedding.dtype)
        self._values = torch.zeros(shape, dtype=self._embedding.dtype)

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, positions: Tensor, start: int, bias: Tensor) -> Tensor:
        """Logits [B, T, V] of token ids and positions [B, T].

        Args:
            token_ids: int64.
            positions: int64.
            start: how many rows of every sequence are there already.
            bias: what is added to attention scores [B or 1, 1, G * T, start + T].
        """
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        rows = self._embedding[token_ids]
        for number, layer in enumerate(self._layers):
            seen = self._attention(number, layer, rows, (cos, sin), start, bias)
            rows = rows + layer.out(seen)
            gate, up = layer.gate_up(self._normed(rows, layer.second_norm)).chunk(2, -1)
            rows = rows + layer.down(silu(gate) * up)
        return self._head(self._normed(rows, self._norm))

    def _attention(
        self,
        number: int,
        layer: _Layer,
        rows: Tensor,
        rotation: tuple[Tensor, Tensor],
        start: int,
        bias: Tensor,
    ) -> Tensor:
        num_sequences, num_rows, _ = rows.shape
        heads = layer.qkv(self._normed(rows, layer.first_norm))
        heads = heads.view(num_sequences, num_rows, -1, self._dim).transpose(1, 2)
        num_turned = self._num_heads + self._num_kv_heads
        turned = _turn(heads[:, :num_turned], rotation)
        stop = start + num_rows
        keys, values = self._keys[number], self._values[number]
        keys[:, :, start:stop] = turned[:, self._num_heads :]
        values[:, :, start:stop] = heads[:, num_turned:]
        query = turned[:, : self._num_heads].reshape(
            num_sequences, self._num_kv_heads, -1, self._dim
        )
        output = scaled_dot_product_attention(
            query, keys[:, :, :stop], values[:, :, :stop], attn_mask=bias
        )
        output = output.view(num_sequences, self._num_heads, num_rows, self._dim)
        return output.transpose(1, 2).reshape(num_sequences, num_rows, -1)

    def _normed(self, rows: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(rows, weight.shape, weight, self._eps)


def _layer(layer: Any) -> _Layer:  # noqa: ANN401
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        layer.input_layernorm.weight.detach(),
        _Product(attention.q_proj, attention.k_proj, attention.v_proj),
        _Product(attention.o_proj),
        layer.post_attention_layernorm.weight.detach(),
        _Product(mlp.gate_proj, mlp.up_proj),
        _Product(mlp.down_proj),
    )


def _turn(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of [B, H, T, D]."""
    cos, sin = rotation
    first, second = heads.chunk(2, -1)
    return heads * cos + torch.cat((-second, first), -1) * sin
