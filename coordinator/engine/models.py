"""The models of an engine process."""

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.engine.settings import EngineSettings
from specedge_p2p.lm.emulated import EmulatedDevice
from specedge_p2p.lm.kv_memory import KvMemory
from specedge_p2p.lm.ports import LanguageModel


@dataclass(frozen=True, slots=True)
class EngineModels:
    """The target model and, where the engine drafts by itself, its draft model."""

    target: LanguageModel
    draft: LanguageModel | None = None


LoadModels = Callable[[EngineSettings], EngineModels]
"""Raises ModelError."""


def load_models(settings: EngineSettings) -> EngineModels:
    """Load the real thing; imports torch, so only the child may call it. Raises ModelError."""
    from specedge_p2p.lm.loader import load_model

    wish = KvMemory.parse(settings.kv_memory) if settings.kv_memory else None
    target, *drafts = (
        load_model(
            name,
            dtype=settings.dtype,
            device=settings.device,
            quantize=settings.quantize,
            cache_rows=settings.cache_rows or memory,
            threads=settings.threads or None,
        )
        for name, memory in ((settings.model, wish), (settings.draft_model, None))
        if name
    )
    return EngineModels(target, drafts[0] if drafts else None)


def on_device(models: EngineModels, device: EmulatedDevice | None) -> EngineModels:
    """The same models, padded where a device is emulated. Raises ProfileError."""
    if device is None:
        return models
    draft = None if models.draft is None else device.as_draft(models.draft)
    return EngineModels(device.as_target(models.target), draft)
