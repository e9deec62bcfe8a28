"""What an engine is started with; frozen and small enough for a command line."""

from dataclasses import dataclass
from typing import Literal

from specedge_p2p.lm.quantization import Quantize

Dtype = Literal["auto", "float32", "bfloat16", "float64"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One target model in one process.

    Args:
        model: hub name, folder or the name of a demo model.
        quantize: weights of the models in 8 or 4 bits.
        threads: CPU threads of the forward; 0 leaves the choice to the library.
        step_floor_s: every step takes at least this long; stands for a slower device.
        cache_rows: rows of the key-value cache over all sessions; 0 plans them from kv_memory.
        kv_memory: memory of the target's cache, spelt as `KvMemory.parse` has it; "" for a share of
            what is free.
        max_sessions: sessions the engine holds at once, finished but unclosed ones included.
        draft_model: the engine's own draft model, "" for none.
        emulate: a device profile (name or file) that every forward is padded to, "" for none.
        stretch: how many real seconds an emulated second takes.
        tensor_parallel: devices that share the target model, each with a process of its own.
    """

    model: str
    dtype: Dtype = "auto"
    quantize: Quantize = "none"
    device: str = "cpu"
    threads: int = 0
    step_floor_s: float = 0.0
    cache_rows: int = 0
    kv_memory: str = ""
    max_sessions: int = 64
    draft_model: str = ""
    emulate: str = ""
    stretch: float = 1.0
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of the engine's memory. What passes them is refused, never queued without end.

    Args:
        max_queued_steps: batches that wait behind the running one.
        max_sources: nodes whose trees one session holds.
        max_live_vertices: live vertices of one source in one session.
        max_prefill_rows: prompt tokens in one forward, whatever a batch allows.
        max_draft_prefill_rows: known tokens that the engine's own draft model reads in one step.
    """

    max_sessions: int = 64
    max_queued_steps: int = 4
    max_sources: int = 16
    max_live_vertices: int = 1024
    max_prefill_rows: int = 4096
    max_draft_prefill_rows: int = 512


@dataclass(frozen=True, slots=True)
class RespawnPolicy:
    """How a dead engine process is brought back.

    A death within `quick_s` of the start is quick; after `max_quick_deaths` of them in a row the
    engine is given up. The wait before a respawn doubles from `first_wait_s` up to `max_wait_s`.
    """

    first_wait_s: float = 0.2
    max_wait_s: float = 10.0
    quick_s: float = 20.0
    max_quick_deaths: int = 5
    close_wait_s: float = 3.0
    """How long a child may take to leave before it is killed."""
