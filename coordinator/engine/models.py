"""The models of an engine process, and how a process waits for a slow one."""

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.engine.settings import EngineSettings
from specedge_p2p.lm.ports import LanguageModel

Idle = Callable[[float], None]
"""Returns when the monotonic clock has reached the given second; hears messages meanwhile."""


@dataclass(frozen=True, slots=True)
class EngineModels:
    """The target model and, where the engine drafts by itself, its draft model."""

    target: LanguageModel
    draft: LanguageModel | None = None


LoadModels = Callable[[EngineSettings, Idle], EngineModels]
"""Raises ModelError. A model may call the Idle while it stands for a slower device."""
