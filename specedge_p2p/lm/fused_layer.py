"""Decoder layers of the common shape with less between their matrix products, for a CPU.

With few rows a third of a layer's time on a CPU goes to calls, not to products. A layer that
computes what Llama, Mistral and Qwen compute (norm, attention with rotary positions, norm, gated
MLP) is replaced by one that joins query, key and value into one product and lets the gate's
activation and multiplication run inside the products. Which layers these are is not told by names:
a replacement must give what the layer itself gives on a few rows, otherwise the layer stays.
Like packing it changes the order of sums, so float64 is left alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from specedge_p2p.lm.packed_linear import Product, does_more, is_supported
from specedge_p2p.lm.tree_attention import LayerAttention

Action = Callable[[Tensor], Tensor]

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_NUM_PROBE_ROWS = 4
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest difference that a replacement may show, as a share of the largest value."""


class FusedLayer(nn.Module):
    """Stands for a decoder layer; gives what it gives. See the head of this file."""

    def __init__(self, layer: Any) -> None:  # noqa: ANN401
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.attention_type = getattr(layer, "attention_type", None)
        self._layer_idx: int = attention.layer_idx
        self._dim: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._num_heads = attention.q_proj.out_features // self._dim
        self._num_turned = self._num_heads + attention.k_proj.out_features // self._dim
        self._first_norm = _norm(layer.input_layernorm)
        self._head_norms: tuple[Action, Action] | None = None
        if hasattr(attention, "q_norm"):
            self._head_norms = (_norm(attention.q_norm), _norm(attention.k_norm))
        self._qkv = Product(_joined(attention.q_proj, attention.k_proj, attention.v_proj))
        self._out = Product(attention.o_proj)
        self._second_norm = _norm(layer.post_attention_layernorm)
        self._gate = Product(mlp.gate_proj)
        self._up = Product(mlp.up_proj)
        self._down = Product(mlp.down_proj)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        layer_attention: LayerAttention,
        **_: object,
    ) -> Tensor:
        """From rows [1, N, width] to such; the arguments are those of transformers' layers."""
        rows = hidden_states + self._out(
            self._attended(hidden_states, position_embeddings, layer_attention)
        )
        normed = self._second_norm(rows)
        return rows + self._down(self._up.times(normed, self._gate.swish(normed)))

    def _attended(
        self,
        rows: Tensor,
        rotation: tuple[Tensor, Tensor],
        layer_attention: LayerAttention,
    ) -> Tensor:
        num_rows = rows.shape[1]
        heads = self._qkv(self._first_norm(rows)).view(num_rows, -1, self._dim)
        turned, values = heads[:, : self._num_turned], heads[:, self._num_turned :]
        if self._head_norms is not None:
            query_norm, key_norm = self._head_norms
            query, keys = turned[:, : self._num_heads], turned[:, self._num_heads :]
            turned = torch.cat((query_norm(query), key_norm(keys)), 1)
        turned = _turn(turned.transpose(0, 1), rotation)
        output = layer_attention.attend(
            self._layer_idx,
            turned[: self._num_heads],
            turned[self._num_heads :],
            values.transpose(0, 1),
            self._scaling,
        )
        return output.reshape(1, num_rows, -1)


def fuse_layers(model: nn.Module) -> int:
    """Replace the layers that can be; returns how many. Call it before `pack_linears`."""
    base = getattr(model, "base_model", model)
    layers, rotary = getattr(base, "layers", None), getattr(base, "rotary_emb", None)
    if not isinstance(layers, nn.ModuleList) or rotary is None:
        return 0
    num_fused = 0
    for number, layer in enumerate(layers):
        if not _has_the_shape(layer):
            continue
        fused = FusedLayer(layer)
        if _gives_the_same(layer, fused, rotary):
            layers[number] = fused
            num_fused += 1
    return num_fused


def _has_the_shape(layer: nn.Module) -> bool:
    """Whether the layer's parts are those that a fused one knows; says nothing of what it does."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or mlp is None or _names(layer) != _LAYER or _names(mlp) != _MLP:
        return False
    if _names(attention) not in (_ATTENTION, _ATTENTION | _HEAD_NORMS):
        return False
    if getattr(attention, "sliding_window", None) is not None or layer.training:
        return False
    if not all(hasattr(attention, name) for name in ("head_dim", "scaling", "layer_idx")):
        return False
    modules = list(layer.modules())
    if any(does_more(module) for module in modules):
        return False
    products = [module for module in modules if getattr(module, "out_features", None)]
    weights = [product.weight for product in products]
    return all(type(product) is nn.Linear for product in products) and all(
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype in _TOLERANCE
        and is_supported(weight.dtype)
        for weight in weights
    )


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


class OverItself:
    """Causal attention over the new rows alone, to try layers with."""

    def __init__(self) -> None:
        self.has_window = False

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        window: int | None = None,
    ) -> Tensor:
        del layer
        self.has_window |= window is not None
        output = scaled_dot_product_attention(
            query[None], keys[None], values[None], is_causal=True, scale=scaling, enable_gqa=True
        )
        return output[0].transpose(0, 1)


@torch.inference_mode()
def _gives_the_same(layer: nn.Module, fused: FusedLayer, rotary: nn.Module) -> bool:
    weight: Tensor = layer.mlp.gate_proj.weight  # type: ignore[union-attr, assignment]
    noise = torch.Generator().manual_seed(0)
    rows = torch.randn((1, _NUM_PROBE_ROWS, weight.shape[1]), generator=noise).to(weight.dtype)
    positions = torch.arange(1, 1 + _NUM_PROBE_ROWS)[None] * 7
    attention = OverItself()
    given: dict[str, Any] = {
        "position_embeddings": rotary(rows, positions),
        "layer_attention": attention,
    }
    expected = layer(rows, attention_mask=None, position_ids=positions, **given)
    if not isinstance(expected, Tensor) or attention.has_window:
        return False  # a window is longer than these few rows, which then tell nothing of it
    found, change = fused(rows, **given) - rows, expected - rows
    return bool((found - change).abs().max() <= _TOLERANCE[weight.dtype] * change.abs().max())


def _joined(*layers: nn.Linear) -> nn.Linear:
    """One linear layer that gives the outputs of several side by side."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if len(biases) == len(layers):
        joined.bias = nn.Parameter(torch.cat([b.detach() for b in biases]), requires_grad=False)
    return joined


def _norm(module: nn.Module) -> Action:
    """What a norm computes, in one call where it is an RMS norm of the plain kind."""
    eps, weight = getattr(module, "variance_epsilon", None), getattr(module, "weight", None)
    if eps is None or not isinstance(weight, Tensor) or weight.dtype != torch.float32:
        return module
    shape, scale = weight.shape, weight.detach()
    return lambda rows: rms_norm(rows, shape, scale, eps)


def _turn(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions of heads [H, N, D]; cosine and sine are [1, N, D]."""
    cos, sin = rotation
    first, second = heads.chunk(2, -1)
    return torch.addcmul(heads * cos, torch.cat((-second, first), -1), sin)
