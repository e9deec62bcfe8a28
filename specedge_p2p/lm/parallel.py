"""A target model over several devices of this machine: tensor parallelism by transformers.

Theory of operation. Every rank is a process that loads its share of every layer (the model's own
`tp_plan`, sharded by transformers over torch.distributed: gloo between CPUs, nccl between GPUs) and
runs the same runner on it; its paged cache holds the key-value heads of its share. What a forward
computes follows from the calls of the port alone, so the leader, rank 0, tells the followers each
call and then does it itself; the layers' all-reduces keep them in step. Which pages a sequence gets
follows from the calls too. Followers choose no tokens that anybody reads.

A pipe to each follower carries the calls: it may be idle for hours, which a collective may not,
and its end says that the leader is gone. A follower that ends takes the leader with it (`on_loss`):
half a model is of no use, and whoever supervises the leader starts all of them again.
"""

import atexit
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar, cast

import msgspec
import torch

from specedge_p2p.lm.kv_memory import KvMemory
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.parallel_calls import (
    AddSequence,
    AdoptPrefix,
    Call,
    Compact,
    DropSequence,
    Forward,
    SharePrefix,
    encode_calls,
    pack_rows,
)
from specedge_p2p.lm.parallel_group import Rank, check_parallel, join_group, meeting_place
from specedge_p2p.lm.ports import (
    BusyModel,
    Children,
    LanguageModel,
    ModelError,
    OutOfCache,
    Rows,
    SamplingParams,
    TokenIds,
    WhileBusy,
)
from specedge_p2p.lm.prefix import PageName
from specedge_p2p.lm.wrapped import WrappedModel
from specedge_p2p.noise import NoiseKey

COMMAND = (sys.executable, "-m", "specedge_p2p.lm.parallel_worker")
FAILED = "specedge-rank-failed: "
"""Stands before the one line that a follower says when it cannot load its share."""
CLOSE_WAIT_S = 3.0
GRACE_S = 30.0
"""How long the leader may take to find out by itself that a follower could not load its share."""
REASON_WAIT_S = 1.0
"""How long a follower's end may take to be known after the forward that it broke."""

Result = TypeVar("Result")

OnLoss = Callable[[str], None]
"""Called from a thread of its own when the ranks are no longer in step; must end this process."""


class ParallelSettings(msgspec.Struct, frozen=True):
    """As `load_model` takes them; `num_ranks` devices share the model."""

    model: str
    num_ranks: int
    dtype: str = "auto"
    device: str = "auto"
    cache_rows: int | KvMemory | None = None
    """Memory is that of each rank."""
    threads: int | None = None


class FollowerTask(msgspec.Struct, frozen=True):
    """What a follower is started with; `device` is "cpu" or "cuda"."""

    settings: ParallelSettings
    rank: int
    device: str
    place: str


class Followers:
    """The processes of ranks 1 and up: fed by pipes, watched by a thread each."""

    def __init__(
        self, settings: ParallelSettings, device: str, place: Path, on_loss: OnLoss
    ) -> None:
        self._on_loss = on_loss
        self._settled = threading.Event()
        self._is_closing = False
        self._waiting: list[Call] = []
        self.failure = ""
        """Why a follower could not load its share, as far as known."""
        self._processes = [
            self._start(settings, rank, device, place) for rank in range(1, settings.num_ranks)
        ]
        self._watchers = [
            threading.Thread(target=self._watch, args=(rank, process), daemon=True)
            for rank, process in enumerate(self._processes, 1)
        ]
        for watcher in self._watchers:
            watcher.start()
        atexit.register(self.close)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def tell(self, call: Call) -> None:
        """Note a call that may wait for the next forward."""
        self._waiting.append(call)

    def tell_now(self, call: Call) -> None:
        """Send all calls noted so far and this one."""
        frame = encode_calls([*self._waiting, call])
        self._waiting.clear()
        for process in self._processes:
            assert process.stdin is not None  # noqa: S101 - for the type checker
            try:
                process.stdin.write(frame)
                process.stdin.flush()
            except BrokenPipeError:
                return  # its watcher knows

    def settle(self) -> None:
        """The leader has loaded its share; whether a follower could not, `failure` says."""
        self._settled.set()

    def lose(self, text: str) -> None:
        """The ranks are out of step, or one has ended."""
        if not self._is_closing:
            self._on_loss(text)

    def lose_forward(self, error: BaseException) -> None:
        """A forward failed in the leader; if a follower ended, its watcher says so first."""
        until_s = time.monotonic() + REASON_WAIT_S
        for watcher in self._watchers:
            watcher.join(max(0.0, until_s - time.monotonic()))
        self.lose(f"a forward failed in the leader: {error!r}")

    def close(self) -> None:
        """End the followers and wait for their end."""
        self._is_closing = True
        self._settled.set()
        for process in self._processes:
            assert process.stdin is not None  # noqa: S101 - for the type checker
            with suppress(BrokenPipeError):  # it has left without reading all that it was told
                process.stdin.close()  # it leaves when it sees this
        for process in self._processes:
            try:
                process.wait(CLOSE_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for watcher in self._watchers:
            watcher.join()

    def _start(
        self, settings: ParallelSettings, rank: int, device: str, place: Path
    ) -> "subprocess.Popen[bytes]":
        task = FollowerTask(settings, rank, device, str(place))
        return subprocess.Popen(  # noqa: S603 - our own module
            [*COMMAND, msgspec.json.encode(task).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        """Wait for a follower's end; hear what it says of its failure."""
        assert process.stdout is not None  # noqa: S101 - for the type checker
        with process.stdout:
            lines = process.stdout.read().decode(errors="replace").splitlines()
        code = process.wait()
        # libraries write there too
        said = "".join(line.removeprefix(FAILED) for line in lines if line.startswith(FAILED))
        if said:
            self.failure = said
            self._settled.wait(GRACE_S)
        self.lose(said or f"rank {rank} of the target model ended with exit code {code}")


class ParallelModel(WrappedModel):
    """The leader: implements `LanguageModel` by all ranks together.

    Args:
        model: rank 0's share.
        followers: the other ranks.
    """

    def __init__(self, model: LanguageModel, followers: Followers) -> None:
        super().__init__(model)
        self.followers = followers

    @property
    def while_busy(self) -> WhileBusy:
        """That of the leader's share: when it is done, so are the sums of all ranks."""
        return cast(BusyModel, self._model).while_busy

    @while_busy.setter
    def while_busy(self, while_busy: WhileBusy) -> None:
        cast(BusyModel, self._model).while_busy = while_busy

    def add_sequence(self, sequence: int, sampling: SamplingParams, key: NoiseKey) -> None:
        super().add_sequence(sequence, sampling, key)
        self.followers.tell(AddSequence(sequence))

    def drop_sequence(self, sequence: int) -> None:
        super().drop_sequence(sequence)
        self.followers.tell(DropSequence(sequence))

    def share_prefix(self, sequence: int, names: Sequence[PageName]) -> None:
        super().share_prefix(sequence, names)
        self.followers.tell(SharePrefix(sequence, list(names)))

    def adopt_prefix(self, sequence: int, names: Sequence[PageName]) -> int:
        num_rows = super().adopt_prefix(sequence, names)
        self.followers.tell(AdoptPrefix(sequence, list(names)))
        return num_rows

    def compact(self, sequence: int, commit: Sequence[int], keep: Sequence[int] = ()) -> None:
        super().compact(sequence, commit, keep)
        self.followers.tell(Compact(sequence, list(commit), list(keep)))

    def choose(self, batch: Sequence[Rows]) -> list[TokenIds]:
        call = Forward([pack_rows(rows) for rows in batch])
        return self._forward(call, lambda: self._model.choose(batch))

    def expand(self, batch: Sequence[Rows], branch_width: int) -> list[Children]:
        call = Forward([pack_rows(rows) for rows in batch], branch_width)
        return self._forward(call, lambda: self._model.expand(batch, branch_width))

    def _forward(self, call: Forward, run: Callable[[], Result]) -> Result:
        """Run on every rank. What the port forbids is refused alike by all; the rest is a loss."""
        self.followers.tell_now(call)
        try:
            return run()
        except BaseException as error:
            # What is refused before a row is written comes from nothing; all else happened here.
            is_refused = isinstance(error, ValueError | OutOfCache) and error.__cause__ is None
            if not is_refused:
                self.followers.lose_forward(error)
            raise


def load_parallel(settings: ParallelSettings, on_loss: OnLoss) -> ParallelModel:
    """Load a model over `num_ranks` devices; the followers end with this process.

    Raises:
        ModelError: with one line that says what is wrong and what to do.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_parallel(settings.num_ranks, device)
    rank = Rank(0, settings.num_ranks)
    with meeting_place() as place:
        followers = Followers(settings, device, place, on_loss)
        try:
            join_group(rank, device, place)
            model = load_share(settings, rank, device)
        except (ModelError, RuntimeError) as error:  # a RuntimeError: a follower that failed
            followers.close()
            raise ModelError(followers.failure or str(error)) from error
    followers.settle()
    return ParallelModel(model, followers)


def load_share(settings: ParallelSettings, rank: Rank, device: str) -> LanguageModel:
    """One rank's share, in a process that has joined the group; every rank must call it."""
    return load_model(
        settings.model,
        dtype=settings.dtype,
        device=rank.device(device),
        cache_rows=settings.cache_rows,
        threads=settings.threads,
        num_ranks=rank.num_ranks,
    )
