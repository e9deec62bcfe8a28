"""`python -m specedge_p2p.lm.parallel_worker TASK`: a follower; see parallel.py."""

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue

import msgspec

from specedge_p2p.lm.parallel import FAILED, FollowerTask, load_share
from specedge_p2p.lm.parallel_calls import (
    AddSequence,
    AdoptPrefix,
    Call,
    Compact,
    DropSequence,
    Forward,
    SharePrefix,
    read_calls,
    unpack_rows,
)
from specedge_p2p.lm.parallel_group import Rank, join_group
from specedge_p2p.lm.ports import LanguageModel, ModelError, OutOfCache, SamplingParams
from specedge_p2p.noise import KEY_BYTES


def follow(model: LanguageModel, calls: Iterable[Call]) -> None:
    """Do what the leader does. What the port refuses is refused there too, and told to people.

    Nobody reads what a follower chooses, so it chooses in the cheapest way.
    """
    greedy = SamplingParams(temperature=0.0)
    for call in calls:
        match call:
            case AddSequence():
                model.add_sequence(call.sequence, greedy, bytes(KEY_BYTES))
            case DropSequence():
                model.drop_sequence(call.sequence)
            case SharePrefix():
                model.share_prefix(call.sequence, call.names)
            case AdoptPrefix():
                model.adopt_prefix(call.sequence, call.names)
            case Compact():
                model.compact(call.sequence, call.commit, call.keep)
            case Forward():
                _forward(model, call)


def _forward(model: LanguageModel, call: Forward) -> None:
    batch = [unpack_rows(packed) for packed in call.batch]
    try:
        if call.branch_width is None:
            model.choose(batch)
        else:
            model.expand(batch, call.branch_width)
    except (ValueError, OutOfCache) as error:
        if error.__cause__ is not None:  # it happened in this rank alone: see ParallelModel
            raise


class Inbox:
    """The leader's calls, read by a thread that ends this process when the leader is gone.

    A forward waits for all ranks, so the leader is never more than a step's calls ahead.
    """

    def __init__(self) -> None:
        self._frames: SimpleQueue[list[Call]] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[Call]:
        while True:
            yield from self._frames.get()

    def _read(self) -> None:
        while (calls := read_calls(sys.stdin.buffer.read)) is not None:
            self._frames.put(calls)
        os._exit(0)  # whatever the main thread waits for will not come


def main(argv: list[str]) -> None:
    inbox = Inbox()
    task = msgspec.json.decode(argv[0], type=FollowerTask)
    rank = Rank(task.rank, task.settings.num_ranks)
    try:
        join_group(rank, task.device, Path(task.place))
        model = load_share(task.settings, rank, task.device)
    except ModelError as error:
        sys.stdout.write(f"{FAILED}{error}\n")
        sys.stdout.flush()
        os._exit(2)  # the other ranks may never answer a goodbye
    follow(model, inbox)


if __name__ == "__main__":
    main(sys.argv[1:])
