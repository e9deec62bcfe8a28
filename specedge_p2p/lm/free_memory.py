"""How much memory a device has left, this process's cgroup heeded."""

import os
from pathlib import Path

import torch

from specedge_p2p.lm.kv_memory import FreeMemory

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def is_gpu(device: str) -> bool:
    """Whether a device, spelt as `load_model` takes it, is one."""
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def free_memory(device: torch.device) -> FreeMemory:
    if device.type == "cuda":
        # What torch keeps of earlier models is not free for the driver, but it is for the next.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return FreeMemory(int(torch.cuda.mem_get_info(device)[0]) + kept, is_gpu=True)
    free = [_available_bytes()]
    if (limit := _cgroup_bytes("memory.max")) is not None:
        free.append(max(0, limit - (_cgroup_bytes("memory.current") or 0)))
    return FreeMemory(min(free), is_gpu=False)


def _available_bytes() -> int:
    """What can be had without swapping; page caches that can be dropped count as free."""
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_bytes(name: str) -> int | None:
    """None where there is no such limit."""
    try:
        return int((_CGROUP / name).read_text("ascii"))
    except (OSError, ValueError):  # another system, or the word "max"
        return None
