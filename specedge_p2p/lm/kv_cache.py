"""The tensors behind the pages: keys and values of every layer, by physical row."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one row takes in every layer."""

    num_layers: int
    num_kv_heads: int
    key_dim: int
    value_dim: int

    def row_bytes(self, dtype: torch.dtype) -> int:
        width = self.key_dim + self.value_dim
        return self.num_layers * self.num_kv_heads * width * dtype.itemsize


class KvCache:
    """Keys [layers, kv_heads, rows, key_dim] and values alike.

    The rows of one head lie together, so that what is gathered is read as attention wants it.
    """

    def __init__(
        self, shape: CacheShape, num_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        rows = (shape.num_layers, shape.num_kv_heads, num_rows)
        # Zeros, not empty: rows that only pad a gather are masked out but must be finite.
        self._keys = torch.zeros((*rows, shape.key_dim), dtype=dtype, device=device)
        self._values = torch.zeros((*rows, shape.value_dim), dtype=dtype, device=device)
        # Views that are made once, not anew in every layer of every forward.
        self._layers = list(zip(self._keys.unbind(0), self._values.unbind(0), strict=True))

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [kv_heads, N, dim] in the physical rows [N]."""
        layer_keys, layer_values = self._layers[layer]
        layer_keys.index_copy_(1, rows, keys)
        layer_values.index_copy_(1, rows, values)

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values [kv_heads, rows, dim] of a layer, as views."""
        return self._layers[layer]

    def gather(self, layer: int, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, M, dim] of the physical rows [M]; a slice copies nothing."""
        keys, values = self._layers[layer]
        if isinstance(rows, slice):
            return keys[:, rows], values[:, rows]
        return keys.index_select(1, rows), values.index_select(1, rows)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows within every layer; the two may overlap, for all are read before any write."""
        for tensor in (self._keys, self._values):
            tensor.index_copy_(2, target, tensor.index_select(2, source))
