"""Loading a draft model: torch, not a file in /dev, says whether there is a GPU."""

import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from node.models import machine_text, prepare_draft
from node.settings import NodeSettings


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")
def test_a_gpu_that_torch_cannot_use_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("node.models.has_cuda_device", lambda: True)
    settings = NodeSettings(home=tmp_path)
    draft = prepare_draft("demo-draft", settings, Console(stderr=True), time.perf_counter)
    assert draft.model.info.dtype == "float32"


def test_a_measurement_holds_for_one_build_of_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = NodeSettings(home=tmp_path)
    monkeypatch.setattr("node.models.version", lambda _: "2.13.0+cpu")
    before = machine_text(settings)
    monkeypatch.setattr("node.models.version", lambda _: "2.13.0+cu130")
    assert machine_text(settings) != before
