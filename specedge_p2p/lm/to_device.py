"""How small arrays reach a device: the host does not wait for their copy."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def on_device(
    values: npt.NDArray[Any] | Sequence[Any],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The values as a tensor on a device.

    From memory that is not pinned a copy to a GPU waits for all that was launched before. Pinned
    memory is not lent again before its copy is done: torch's allocator sees to that.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
