"""Forwards on a GPU: a flat plan, the Triton kernel, and a CUDA graph per shape.

Launching the hundreds of small kernels of a forward one by one takes longer than most steps
compute. A captured graph is launched as one, but its shapes are fixed: a step is padded up to a
shape of a coarse grid, whose graph is captured when it is first needed. All graphs share one
memory pool, since no two run at once; what comes after the cap on its memory, or is larger than
any captured shape, as most prompt chunks are, runs without. When there is no memory for one more
graph, all are given up: forwards need it more.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from specedge_p2p.lm.families import turns_with_length
from specedge_p2p.lm.flat_plan import (
    MAX_WORDS,
    FlatShape,
    buffer_size,
    column_spans,
    columns_of,
    fill,
    shape_of,
)
from specedge_p2p.lm.kv_cache import KvCache
from specedge_p2p.lm.pages import PAGE_ROWS
from specedge_p2p.lm.tree_attention import PlannedRows

MAX_GRAPH_ROWS = 512
"""Larger forwards compute longer than they are launched."""
MAX_GRAPH_BYTES = 2 << 30
GRAPH_SHARE = 1 / 3
"""Of what is free beside weights and cache: the rest is for forwards and for choosing tokens."""
MAX_GRAPHS = 128
MAX_HEAD_DIM = 256
"""Larger heads do not fit the kernel's blocks."""

Compute = Callable[[], Tensor]
Record = Callable[[Compute], Compute]
"""From a computation on fixed buffers to one that repeats it; the result lies where it lay."""


@dataclass(slots=True)
class ForwardTally:
    """How forwards were run, and what padding cost.

    Args:
        num_graphs: shapes captured.
        num_replays: forwards that were one launch.
        num_eager: forwards that were not.
        num_rows: rows of replays, without padding.
        num_padded_rows: rows computed on top of these.
    """

    num_graphs: int = 0
    num_replays: int = 0
    num_eager: int = 0
    num_rows: int = 0
    num_padded_rows: int = 0


def graph_shape(least: FlatShape) -> FlatShape | None:
    """The shape to pad up to: few shapes, little padding. None where no graph pays."""
    if least.num_rows > MAX_GRAPH_ROWS:
        return None
    return FlatShape(
        num_rows=_coarse(least.num_rows),
        num_tiles=_power(least.num_tiles, 1),
        num_outputs=_coarse(max(1, least.num_outputs)),
        num_words=_coarse_words(least.num_words),
        num_pages=max(1024, _power(least.num_pages, 2)),
    )


def eager_shape(least: FlatShape) -> FlatShape:
    """The shape to run without a graph: for another number of words a kernel is compiled anew."""
    return replace(least, num_words=_coarse_words(least.num_words))


def _coarse_words(number: int) -> int:
    return min(MAX_WORDS, _power(number, 2))


def _coarse(number: int) -> int:
    """Powers of two to 8, then steps of 8 to 64, of 16 to 128 and of 32."""
    step = 8 if number <= 64 else 16 if number <= 128 else 32
    return _power(number, 1) if number <= 8 else -(-number // step) * step


def _power(number: int, exponent: int) -> int:
    """The next power of 2**exponent."""
    bits = (number - 1).bit_length()
    return 1 << (-(-bits // exponent) * exponent)


def free_bytes(device: torch.device) -> int:
    """What a GPU has left, with what torch only keeps for later given back; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Kernels, streams and events are those of the thread's current device, maybe another."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class CudaRecorder:
    """Implements `Record` by CUDA graphs over one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """Raises torch.OutOfMemoryError; the buffers must hold a real step already."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and libraries set up outside of it
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class _Slot:
    """A plan's buffers on both sides, and what runs on them."""

    run: Compute

    def __init__(self, shape: FlatShape, device: torch.device) -> None:
        self.shape = shape
        is_cuda = device.type == "cuda"
        self._host = torch.zeros(buffer_size(shape), dtype=torch.int32, pin_memory=is_cuda)
        self._device = torch.zeros(buffer_size(shape), dtype=torch.int32, device=device)
        self._copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
        self.columns = columns_of(self._host.numpy(), shape)
        self.parts = [self._device[span] for span in column_spans(shape)]

    def wait(self) -> None:
        """Until the host's side may be filled again."""
        if self._copied is not None:
            self._copied.synchronize()

    def send(self) -> None:
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


class GpuForward:
    """Logits of planned rows by the Triton kernel.

    Args:
        model: a causal language model built with `register_attention()`'s name.
        cache: its paged cache.
        heads_per_kv: query heads of a key-value head.
        scratch_page: a page that no sequence has; what pads a step is written there.
        device: where all of it lies.
        record: captures a shape; None to run every forward by itself and without padding.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        cache: KvCache,
        heads_per_kv: int,
        scratch_page: int,
        device: torch.device,
        record: Record | None,
    ) -> None:
        from specedge_p2p.lm.triton_attention import rows_of_tile

        self._model, self._cache, self._device = model, cache, device
        self._heads_per_kv = heads_per_kv
        self._tile_rows = rows_of_tile(heads_per_kv, cache.of_layer(0)[0].dtype)
        self._scratch_row = scratch_page * PAGE_ROWS
        self._record = record
        self._slots: dict[FlatShape, _Slot] = {}
        self._graph_bytes = 0
        self._most_bytes = min(MAX_GRAPH_BYTES, int(free_bytes(device) * GRAPH_SHARE))
        self.tally = ForwardTally()

    def logits(self, entries: Sequence[PlannedRows]) -> Tensor:
        """[outputs, V]; the next forward overwrites them."""
        with _current(self._device):
            return self._logits(entries)

    def give_up_graphs(self) -> None:
        """From here on every forward runs without."""
        self._record = None
        self._slots.clear()

    def _logits(self, entries: Sequence[PlannedRows]) -> Tensor:
        least = shape_of(entries, self._tile_rows)
        slot = self._slot(least, entries)
        if slot is None:
            self.tally.num_eager += 1
            slot = _Slot(eager_shape(least), self._device)
            self._send(slot, entries)
            return self._compute(slot)
        self.tally.num_replays += 1
        self.tally.num_rows += least.num_rows
        self.tally.num_padded_rows += slot.shape.num_rows - least.num_rows
        return slot.run()[: least.num_outputs]

    def _slot(self, least: FlatShape, entries: Sequence[PlannedRows]) -> _Slot | None:
        """The captured shape that holds a step, filled with it."""
        shape = graph_shape(least)
        if shape is None:
            return None
        if slot := self._slots.get(shape):
            self._send(slot, entries)
            return slot
        if self._record is None or len(self._slots) >= MAX_GRAPHS:
            return None
        slot = _Slot(shape, self._device)
        self._send(slot, entries)
        num_free = free_bytes(self._device)
        try:
            slot.run = self._record(lambda: self._compute(slot))
        except torch.OutOfMemoryError:
            self.give_up_graphs()
            return None
        self._slots[shape] = slot
        self.tally.num_graphs += 1
        self._graph_bytes += max(0, num_free - free_bytes(self._device))
        if self._graph_bytes > self._most_bytes:
            self._record = None  # those that are there stay
        return slot

    def _send(self, slot: _Slot, entries: Sequence[PlannedRows]) -> None:
        slot.wait()
        fill(slot.columns, entries, slot.shape.num_words, self._tile_rows, self._scratch_row)
        slot.send()

    def _compute(self, slot: _Slot) -> Tensor:
        from specedge_p2p.lm.triton_attention import DevicePlan, TritonAttention

        plan = DevicePlan(*slot.parts)
        result = self._model(
            input_ids=plan.ids.long()[None],
            position_ids=plan.positions.long()[None],
            use_cache=False,
            logits_to_keep=plan.outputs.long(),
            layer_attention=TritonAttention(self._cache, plan, self._heads_per_kv),
        )
        logits: Tensor = result.logits[0]
        return logits


def gpu_forward(
    model: torch.nn.Module, cache: KvCache, heads_per_kv: int, scratch_page: int, *, is_alone: bool
) -> GpuForward | None:
    """What a model on a GPU is run by; None on other devices and where Triton is missing.

    Sliding windows are not for the kernel: a model that has them must do without.

    A model that is shared out over processes runs without graphs: the ranks would have to capture
    in step, and each looks at its own memory. So does one whose rotary positions turn with the
    length of a text: transformers reads that on the host, which a capture does not survive.
    """
    like = next(model.parameters())
    if like.device.type != "cuda" or like.dtype == torch.float64 or find_spec("triton") is None:
        return None
    if any(rows.shape[2] > MAX_HEAD_DIM for rows in cache.of_layer(0)):
        return None
    config: Any = model.config
    can_record = is_alone and not turns_with_length(config.get_text_config())
    record = CudaRecorder() if can_record else None
    return GpuForward(model, cache, heads_per_kv, scratch_page, like.device, record)
