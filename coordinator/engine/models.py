"""The models of an engine process."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.engine.settings import EngineSettings
from specedge_p2p.lm.emulated import EmulatedDevice
from specedge_p2p.lm.kv_memory import MAX_CONTEXTS, KvMemory
from specedge_p2p.lm.ports import LanguageModel, ModelError

GPU_DRAFT_MEMORY = KvMemory(share=0.05, max_contexts=MAX_CONTEXTS)
"""Of a draft model beside the target on a GPU. Small, because the target's weights are still to
come: a draft model that is short of rows drafts for fewer sessions, a target serves fewer."""


@dataclass(frozen=True, slots=True)
class EngineModels:
    """The target model and, where the engine drafts by itself, its draft model."""

    target: LanguageModel
    draft: LanguageModel | None = None


LoadModels = Callable[[EngineSettings], EngineModels]
"""Raises ModelError."""


def load_models(settings: EngineSettings) -> EngineModels:
    """Load the real thing; imports torch, so only the child may call it. Raises ModelError."""
    memory = KvMemory.parse(settings.kv_memory) if settings.kv_memory else None
    if not settings.draft_model:
        return EngineModels(_load_target(settings, settings.cache_rows or memory))
    if _is_gpu(settings.device):
        # First the draft model's small share: after the target there would be nothing left for it,
        # and after both nothing for the forwards.
        draft = _load(settings, settings.draft_model, settings.cache_rows or GPU_DRAFT_MEMORY)
        return EngineModels(_load_target(settings, settings.cache_rows or memory), draft)
    target = _load_target(settings, settings.cache_rows or memory)
    return EngineModels(target, _load(settings, settings.draft_model, settings.cache_rows or None))


def _is_gpu(device: str) -> bool:
    from specedge_p2p.lm.free_memory import is_gpu

    return is_gpu(device)


def _load_target(settings: EngineSettings, cache_rows: int | KvMemory | None) -> LanguageModel:
    if settings.tensor_parallel == 1:
        return _load(settings, settings.model, cache_rows)
    if settings.quantize != "none":
        raise ModelError("--quantize does not go together with --tensor-parallel: give one of them")
    from specedge_p2p.lm.parallel import ParallelSettings, load_parallel

    parallel = ParallelSettings(
        model=settings.model,
        num_ranks=settings.tensor_parallel,
        dtype=settings.dtype,
        device=settings.device,
        cache_rows=cache_rows,
        threads=settings.threads or None,
    )
    return load_parallel(parallel, _leave)


def _load(settings: EngineSettings, name: str, cache_rows: int | KvMemory | None) -> LanguageModel:
    from specedge_p2p.lm.loader import load_model

    return load_model(
        name,
        dtype=settings.dtype,
        device=settings.device,
        quantize=settings.quantize,
        cache_rows=cache_rows,
        threads=settings.threads or None,
    )


def _leave(text: str) -> None:
    """End this process at once: its main thread may wait for a rank that will never answer."""
    sys.stderr.write(f"engine: {text}\n")
    sys.stderr.flush()
    os._exit(1)


def on_device(models: EngineModels, device: EmulatedDevice | None) -> EngineModels:
    """The same models, padded where a device is emulated. Raises ProfileError."""
    if device is None:
        return models
    draft = None if models.draft is None else device.as_draft(models.draft)
    return EngineModels(device.as_target(models.target), draft)
