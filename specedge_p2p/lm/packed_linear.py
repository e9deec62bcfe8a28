"""Linear layers whose weights are packed once for this processor, not anew in every call.

A matrix product of a few rows spends much of its time bringing the weight into the order that its
inner loop reads. oneDNN does that ahead of time. The product is the same up to the order in which
it is summed, so float64, in which results are to be exact, is left as it is.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

MIN_ELEMENTS = 200_000
"""Smaller weights are not packed: the call costs more than the packed product saves."""
_USUAL_ROWS = 64
"""The number of rows that the packing is chosen for."""


class Product:
    """What a linear layer computes, from its weight in packed form where that pays.

    Not a module: calling one costs as much as a small product.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self._weight = layer.weight.detach()
        self._bias = None if layer.bias is None else layer.bias.detach()
        self.is_packed = can_pack(layer)
        if self.is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, _USUAL_ROWS)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._multiply_with = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, rows: Tensor) -> Tensor:
        if not self.is_packed:
            return linear(rows, self._weight, self._bias)
        output: Tensor = self._multiply(rows, self._weight, self._bias, "none", [], "")
        return output

    def swish(self, rows: Tensor) -> Tensor:
        """The product p as p * sigmoid(p)."""
        if not self.is_packed:
            return silu(linear(rows, self._weight, self._bias))
        output: Tensor = self._multiply(rows, self._weight, self._bias, "swish", [], "")
        return output

    def times(self, rows: Tensor, factors: Tensor) -> Tensor:
        """The product, element by element times `factors`."""
        if not self.is_packed:
            return linear(rows, self._weight, self._bias).mul_(factors)
        output: Tensor = self._multiply_with(rows, factors, self._weight, self._bias, "mul")
        return output


class PackedLinear(nn.Module):
    """Stands for a linear layer and holds its weight in packed form alone."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._product = Product(layer)

    def forward(self, rows: Tensor) -> Tensor:
        return self._product(rows)


def pack_linears(model: nn.Module) -> int:
    """Replace the large linear layers of a model on the CPU; returns how many.

    Layers of another class, that do more than their class, or with weights of another kind
    (quantized or shared out over processes) stay.
    """
    num_packed = 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear and can_pack(module):
                setattr(parent, name, PackedLinear(module))
                num_packed += 1
    return num_packed


def can_pack(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        weight.device.type == "cpu"
        and type(weight) is nn.Parameter
        and weight.numel() >= MIN_ELEMENTS
        and not does_more(layer)
        and is_supported(weight.dtype)
    )


def does_more(module: nn.Module) -> bool:
    """Whether a call does more than the class says: hooks, or a forward of this module's own."""
    return bool(module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module))


def is_supported(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
