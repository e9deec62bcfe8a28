"""Small arrays on their way to a device."""

from typing import Any

import numpy as np
import pytest
import torch

from specedge_p2p.lm.to_device import on_device


def test_nothing_is_copied_to_a_gpu_that_the_host_would_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy is only left to run beside the host where it is asked for and the source is pinned."""
    pinned: list[torch.Tensor] = []
    copies: list[tuple[bool, torch.device, bool]] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    def copy(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool = False) -> Any:  # noqa: ANN401
        copies.append((any(tensor is one for one in pinned), device, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    gpu = torch.device("cuda:1")
    assert on_device([3, 4], gpu).tolist() == [3, 4]
    assert on_device(np.array([5]), gpu, torch.float32).dtype == torch.float32
    assert copies == [(True, gpu, True)] * 2


def test_on_the_host_nothing_is_pinned() -> None:
    array = np.arange(3)
    tensor = on_device(array, torch.device("cpu"))
    array[0] = 7
    assert tensor.tolist() == [7, 1, 2]  # and an array not even copied
    assert on_device([True, False], torch.device("cpu")).dtype == torch.bool
