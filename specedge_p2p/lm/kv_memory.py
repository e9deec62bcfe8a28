"""How much memory the key-value cache takes: as told, or planned from what is free. Pure."""

import re
from dataclasses import dataclass

from specedge_p2p.lm.ports import ModelError

GPU_SHARE = 0.8
"""Of the free memory of a device that nobody else uses; the rest is for the forwards."""
HOST_SHARE = 0.25
"""Of the free memory of a machine that has other things to do."""
MAX_CONTEXTS = 64
"""More full contexts than this are not planned unless somebody asks for them."""
MIN_ROWS = 512
"""A smaller cache serves nobody, unless the model's context is smaller still."""
_UNITS = "bkmgt"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt])?(ib|b)?", re.IGNORECASE)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True, slots=True)
class KvMemory:
    """A wish for the cache.

    Args:
        num_bytes: of it, or 0 for a share.
        share: of the memory that is free, or 0 for bytes.
        max_contexts: full contexts of the model that are enough, 0 for any number.
    """

    num_bytes: int = 0
    share: float = 0.0
    max_contexts: int = 0

    @classmethod
    def parse(cls, text: str) -> "KvMemory":
        """From a size such as 8GiB, 500MB or 2g, or a share such as 50%. Raises ModelError."""
        if found := _SHARE.fullmatch(text.strip()):
            share = float(found[1]) / 100
            if 0 < share <= 1:
                return cls(share=share)
        elif found := _SIZE.fullmatch(text.strip()):
            power = _UNITS.index((found[2] or "b").lower())
            # MB are millions of bytes; MiB and a bare M are powers of two.
            base = 1000 if (found[3] or "").lower() == "b" else 1024
            num_bytes = int(float(found[1]) * base**power)
            if num_bytes > 0:
                return cls(num_bytes=num_bytes)
        raise ModelError(
            f"{text!r} is no size of a cache: give one such as 8GiB or 500MB, or a share of the "
            "free memory such as 50%"
        )


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """What a device has left: bytes, and whether it is a GPU."""

    num_bytes: int
    is_gpu: bool


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Rows of cache, and the context that a session can have in it."""

    num_rows: int
    max_context: int


def plan_cache(
    row_bytes: int, max_context: int, free: FreeMemory, wish: KvMemory | None
) -> CachePlan:
    """How many rows the cache gets; a context that does not fit into it is cut.

    Args:
        row_bytes: of one row over all layers.
        max_context: of the model.
        free: of the device, now.
        wish: None plans a share of what is free, at most `MAX_CONTEXTS` full contexts.

    Raises:
        ModelError: when too little is left or given to serve anybody, or more is wished for than
            there is.
    """
    if wish is None:
        share = GPU_SHARE if free.is_gpu else HOST_SHARE
        wish = KvMemory(share=share, max_contexts=MAX_CONTEXTS)
    num_bytes = wish.num_bytes or int(free.num_bytes * wish.share)
    if num_bytes > free.num_bytes:
        raise ModelError(
            f"a cache of {say_bytes(num_bytes)} does not fit: {say_bytes(free.num_bytes)} of "
            "memory are free; give a smaller --kv-memory"
        )
    if wish.max_contexts:
        num_bytes = min(num_bytes, wish.max_contexts * max_context * row_bytes)
    num_rows = num_bytes // row_bytes
    least = min(max_context, MIN_ROWS)
    if num_rows < least:
        raise ModelError(
            f"{say_bytes(num_bytes)} of memory for the key-value cache hold {num_rows} tokens: "
            f"at least {say_bytes(least * row_bytes)} ({least} tokens) are needed, see --kv-memory"
        )
    return CachePlan(num_rows, min(max_context, num_rows))


def say_bytes(num_bytes: int) -> str:
    """A size for people."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
