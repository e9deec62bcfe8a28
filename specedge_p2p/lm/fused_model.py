"""A whole forward with nothing between its layers, where all layers of a model are fused ones.

Around its layers transformers makes masks, collects outputs and wraps them, none of which is wanted
here; with one row that takes as long as two layers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from specedge_p2p.lm.fused_layer import FusedLayer, OverItself
from specedge_p2p.lm.tree_attention import LayerAttention

_BASE = {"embed_tokens", "layers", "norm", "rotary_emb"}
_WHOLE = {"model", "lm_head"}
_TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest."""


class FusedModel:
    """Embedding, layers, norm and head of a model, which keeps them."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        base = model.model
        self._embedding: Tensor = base.embed_tokens.weight.detach()
        self._rotary: nn.Module = base.rotary_emb
        self._layers: list[FusedLayer] = list(base.layers)
        self._norm: nn.Module = base.norm
        self._head: nn.Module = model.lm_head

    def logits(
        self,
        token_ids: Tensor,
        positions: Tensor,
        outputs: Tensor,
        layer_attention: LayerAttention,
    ) -> Tensor:
        """Logits [1, O, V] from token ids and positions [1, N] after the rows `outputs` [O]."""
        rows = embedding(token_ids, self._embedding)
        rotation = self._rotary(rows, positions)
        for layer in self._layers:
            rows = layer.forward(
                rows, position_embeddings=rotation, layer_attention=layer_attention
            )
        if len(outputs) < rows.shape[1]:
            rows = rows.index_select(1, outputs)
        logits: Tensor = self._head(self._norm(rows))
        return logits


def fused_model(model: Any) -> FusedModel | None:  # noqa: ANN401
    """The model's forward, None where the model does more than is known here."""
    if {name for name, _ in model.named_children()} != _WHOLE:
        return None
    if {name for name, _ in model.model.named_children()} != _BASE:
        return None
    if not all(isinstance(layer, FusedLayer) for layer in model.model.layers):
        return None
    if getattr(model.config, "final_logit_softcapping", None) is not None:
        return None
    fused = FusedModel(model)
    return fused if _gives_the_same(model, fused) else None


@torch.inference_mode()
def _gives_the_same(model: Any, fused: FusedModel) -> bool:  # noqa: ANN401
    num_tokens = min(4, model.config.vocab_size)
    token_ids, positions = torch.arange(num_tokens)[None], 5 * torch.arange(num_tokens)[None]
    outputs = torch.arange(1, num_tokens)
    found = fused.logits(token_ids, positions, outputs, OverItself())
    expected = model(
        input_ids=token_ids,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=outputs,
        layer_attention=OverItself(),
    ).logits
    largest = expected.abs().max()
    return bool((found - expected).abs().max() <= _TOLERANCE * largest)
