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
    """Keys [layers, rows, kv_heads, key_dim] and values alike."""

    def __init__(
        self, shape: CacheShape, num_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        rows = (shape.num_layers, num_rows, shape.num_kv_heads)
        # Zeros, not empty: rows that only pad a gather are masked out but must be finite.
        self._keys = torch.zeros((*rows, shape.key_dim), dtype=dtype, device=device)
        self._values = torch.zeros((*rows, shape.value_dim), dtype=dtype, device=device)

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [N, kv_heads, dim] in the physical rows [N]."""
        self._keys[layer].index_copy_(0, rows, keys)
        self._values[layer].index_copy_(0, rows, values)

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values [rows, kv_heads, dim] of a layer, as views."""
        return self._keys[layer], self._values[layer]

    def gather(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [M, kv_heads, dim] of the physical rows [M]."""
        return self._keys[layer].index_select(0, rows), self._values[layer].index_select(0, rows)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows within every layer; the two may overlap, for all are read before any write."""
        for tensor in (self._keys, self._values):
            tensor.index_copy_(1, target, tensor.index_select(1, source))
