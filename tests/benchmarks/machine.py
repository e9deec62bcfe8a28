"""Which machine, when and with which command: no figure means anything without them."""

import os
import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Machine:
    processor: str
    num_cores: int
    memory_gib: float
    system: str
    python: str
    torch: str
    load_average: float
    """Over the minute before the run; foreign load makes figures worthless."""
    date: str
    command: str

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.num_cores} cores, {self.memory_gib:.0f} GiB, {self.system}; "
            f"Python {self.python}, torch {self.torch}; load before {self.load_average:.1f}; "
            f"{self.date}; {self.command}"
        )


def this_machine() -> Machine:
    return Machine(
        processor=_processor(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        load_average=os.getloadavg()[0],
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command="python -m tests.benchmarks " + shlex.join(sys.argv[1:]),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
