"""The process group of a tensor-parallel model: one process per rank, all on this machine."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from specedge_p2p.lm.ports import ModelError

TIMEOUT = timedelta(minutes=10)
"""A collective that takes longer ends the process: another rank hangs."""
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True, slots=True)
class Rank:
    """One process of a group; rank 0 leads."""

    rank: int
    num_ranks: int

    def device(self, device: str) -> str:
        """This rank's device of a kind: "cuda" is spread over the GPUs."""
        return f"cuda:{self.rank}" if device == "cuda" else device


def check_parallel(num_ranks: int, device: str) -> None:
    """Raise ModelError where this machine cannot hold that many ranks."""
    if device not in ("cpu", "cuda"):
        raise ModelError(f"tensor parallelism takes the first GPUs: give cuda, not {device}")
    if device == "cuda" and num_ranks > torch.cuda.device_count():
        raise ModelError(
            f"tensor parallelism over {num_ranks} GPUs: torch sees {torch.cuda.device_count()}"
        )
    if device == "cpu" and torch.cuda.is_available():  # transformers would take the GPUs
        raise ModelError("tensor parallelism on the CPU: hide the GPUs (CUDA_VISIBLE_DEVICES='')")


@contextmanager
def meeting_place() -> Iterator[Path]:
    """A file through which the ranks find each other; gone when all have."""
    with tempfile.TemporaryDirectory(prefix="specedge-") as folder:
        yield Path(folder) / "ranks"


def join_group(rank: Rank, device: str, place: Path) -> None:
    """Become a rank of a new group; waits for the others. `device` is "cpu" or "cuda"."""
    for name, value in _LOOPBACK.items():
        os.environ.setdefault(name, value)
    os.environ["LOCAL_RANK"] = str(rank.rank)  # where transformers looks for the device
    if device == "cuda":
        torch.cuda.set_device(rank.rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        init_method=place.as_uri(),
        rank=rank.rank,
        world_size=rank.num_ranks,
        timeout=TIMEOUT,
    )


def fewest(number: int) -> int:
    """The smallest of all ranks' numbers; every rank must call it."""
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor)


def share_arguments(config: Any, name: str, num_ranks: int) -> dict[str, Any]:  # noqa: ANN401
    """What `from_pretrained` needs to load one rank's share; nothing for one rank.

    Raises ModelError for a model that cannot be shared among so many.
    """
    if num_ranks == 1:
        return {}
    if find_spec("accelerate") is None:
        raise ModelError(
            "tensor parallelism needs accelerate: in your clone, pip install '.[parallel]'"
        )
    text_config = config.get_text_config()
    if not getattr(text_config, "base_model_tp_plan", None):
        raise ModelError(f"{name}: transformers has no plan to share out {config.model_type}")
    num_heads = text_config.num_attention_heads
    num_kv_heads = getattr(text_config, "num_key_value_heads", None) or num_heads
    if num_heads % num_ranks or num_kv_heads % num_ranks:
        raise ModelError(
            f"{name}: {num_heads} query and {num_kv_heads} key-value heads cannot be shared "
            f"evenly among {num_ranks}: give a tensor parallelism that divides both"
        )
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=num_ranks, tp_plan="auto")}
