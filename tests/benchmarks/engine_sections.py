"""What `python -m tests.benchmarks engine` measures, in this order; a new section is a new line."""

import torch

from tests.benchmarks import gpu
from tests.benchmarks.engine import EngineEffort, EngineFigures, EngineRow, Section
from tests.benchmarks.engine_forwards import level_section, verification_section
from tests.benchmarks.engine_generation import plain_section, speculation_section
from tests.benchmarks.engine_memory import MemoryEffort, measure_memory
from tests.benchmarks.engine_profile import host_section


def memory_section(effort: EngineEffort) -> EngineFigures:
    """See engine_memory.py; each serving is made once, whatever the effort."""
    del effort
    figures = measure_memory(MemoryEffort())
    rows = [EngineRow(row.name, row.time_ms, row.against, row.ratio) for row in figures.rows]
    return EngineFigures(tuple(rows), figures.checks)


def gpu_section(effort: EngineEffort) -> EngineFigures:
    """See gpu.py. Nothing where there is no GPU, or none with room for the target's shape."""
    device = torch.device("cuda")
    if not torch.cuda.is_available() or not gpu.has_room(device):
        return EngineFigures((), ())
    bench = gpu.bench_on(device, effort.num_repeats)
    figures = gpu.measure(bench, gpu.TARGET, gpu.DRAFT, gpu.SMALL)
    rows = [
        EngineRow(row.name, row.time_ms, "its weights read", row.time_ms / row.weights_ms)
        for row in figures.rows
    ]
    return EngineFigures(tuple(rows), tuple(figures.checks))


SECTIONS: tuple[tuple[str, Section], ...] = (
    ("cpu/verification", verification_section),
    ("cpu/levels", level_section),
    ("cpu/host", host_section),
    ("cpu/plain", plain_section),
    ("cpu/speculation", speculation_section),
    ("memory", memory_section),
    ("gpu", gpu_section),
)
